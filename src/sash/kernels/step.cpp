#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "step_frame.h"

namespace sash {

namespace {

// Rows of activations are multiplied in blocks of so many.
constexpr int64_t kRowBlock = 256;
// Large pages: activations of a long step touch thousands of small ones, again and again.
constexpr size_t kPage = 2 << 20;

float* row_of(float* x, int64_t row, int64_t stride) { return x + row * stride; }

// Cuts a region's memory into aligned parts.
class Carver {
 public:
  explicit Carver(char* from) : at_(from) {}
  template <class T>
  T* take(size_t count) {
    T* part = reinterpret_cast<T*>(at_);
    at_ += (count * sizeof(T) + 63) / 64 * 64;
    return part;
  }
  size_t used(const char* from) const { return static_cast<size_t>(at_ - from); }

 private:
  char* at_;
};

}  // namespace

Scratch::~Scratch() { std::free(memory_); }

char* Scratch::room(size_t bytes) {
  if (bytes <= held_) return memory_;
  std::free(memory_);
  memory_ = nullptr;
  held_ = 0;
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  memory_ = static_cast<char*>(std::aligned_alloc(kPage, size));
  if (memory_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  madvise(memory_, size, MADV_HUGEPAGE);  // A wish: without it pages are small, and all else is the same.
#endif
  held_ = size;
  return memory_;
}

void Stepper::region(const std::function<void(Team&)>& body) {
  pool_.run([&](Team& team) {
    table_.enter();
    body(team);
    table_.leave();
  });
}

void Stepper::share_product(Team& team, const Product& product) {
  if (product.n_rows <= kTile) return share_few(team, product);
  const Linear& linear = *product.linear;
  const int64_t blocks = ceil_div(product.n_rows, kRowBlock);
  const int64_t rows = ceil_div(ceil_div(product.n_rows, blocks), 32) * 32;
  const int64_t tiles = linear.tiles(), fair = ceil_div(tiles, 4 * team.size());
  int64_t chunk = product.n_rows > kFewRows ? 8 : std::max<int64_t>(2, kClaimBytes / linear.tile_bytes());
  chunk = std::min(chunk, std::max<int64_t>(2, fair)) / 2 * 2;
  const int64_t chunks = ceil_div(tiles, chunk);
  team.share(blocks * chunks, [&](int64_t unit) {
    const int64_t row = unit / chunks * rows, tile = unit % chunks * chunk;
    if (row >= product.n_rows) return;
    table_.multiply(product, tile, std::min(tile + chunk, tiles), row, std::min(rows, product.n_rows - row));
  });
}

void Stepper::prepare(Team& team, Frame& frame, const float* x, int64_t stride, const Norm* norm,
                      const Linear& linear) {
  const Form form(linear);
  const Rows rows = Rows::in(frame.rows, form, frame.n_tokens);
  const Norm* post = frame.pending;
  team.share(frame.n_tokens, [&](int64_t row) {
    float* own = frame.thread_floats[team.index()];
    if (post != nullptr) {
      table_.normalise(row_of(frame.branch, row, frame.dim), *post, frame.dim, own);
      float* to = row_of(frame.x, row, frame.dim);
      for (int64_t i = 0; i < frame.dim; ++i) to[i] += own[i];
    }
    table_.prepare_row(x + row * stride, norm, form, rows, row, own);
    if (row == 0) table_.clear_rows(form, rows, frame.n_tokens, ceil_div(frame.n_tokens, kTile) * kTile);
  });
}

void Stepper::rotate_heads(const Layer& layer, Frame& frame, int64_t token, int64_t head) {
  const AttentionWeights& a = layer.attention;
  const KindPlan& kind = frame.plan->kinds[a.kind];
  const int64_t dim = a.head_dim, per_group = a.n_heads / a.n_kv_heads, half = dim / 2;
  const bool int8 = frame.plan->int8_kv;
  const float* from = frame.qkv + token * frame.qkv_stride;
  const Angles own{kind.cos + token * half, kind.sin + token * half, a.interleaved_rope, frame.plan->mixing};
  float turned[kMaxHeadDim];
  for (int64_t r = 0; r < per_group; ++r) {
    const float* q = from + (head * per_group + r) * dim;
    const int64_t at = ((head * frame.n_tokens + token) * per_group + r) * dim;
    table_.turn_head(q, a.q_norm, own, dim, turned);
    table_.keep_head(turned, dim, reinterpret_cast<char*>(frame.q + at), nullptr);
    if (kind.clamped_cos == nullptr) continue;
    const Angles clamped{kind.clamped_cos + token * half, kind.clamped_sin + token * half, a.interleaved_rope,
                         frame.plan->mixing};
    table_.turn_head(q, a.q_norm, clamped, dim, turned);
    table_.keep_head(turned, dim, reinterpret_cast<char*>(frame.clamped_q + at), nullptr);
  }
  const int64_t slot = head * frame.n_tokens + token, size = int8 ? 1 : 2;
  table_.turn_head(from + (a.n_heads + head) * dim, a.k_norm, own, dim, turned);
  table_.keep_head(turned, dim, frame.keys + slot * dim * size, int8 ? frame.key_scales + slot : nullptr);
  table_.keep_head(from + (a.n_heads + a.n_kv_heads + head) * dim, dim, frame.values + slot * dim * size,
                   int8 ? frame.value_scales + slot : nullptr);
}

void Stepper::attend_unit(const Layer& layer, Frame& frame, int64_t index, char* scratch) {
  const AttentionWeights& a = layer.attention;
  const KindPlan& kind = frame.plan->kinds[a.kind];
  const AttentionUnit& unit = frame.units[a.kind][index];
  const SpanPlan& span = *unit.span;
  const int64_t per_group = a.n_heads / a.n_kv_heads, size = frame.plan->int8_kv ? 1 : 2;
  const size_t most = span.held.size() + 2 * span.pins.size() + 1;
  KeyRun local[8];
  std::vector<KeyRun> more;
  KeyRun* runs = local;
  if (most > 8) {
    more.resize(most);
    runs = more.data();
  }
  int n_runs = 0;
  const int64_t first_slot = unit.head * frame.n_tokens + span.start;
  const auto own = [&](int64_t from, int64_t count, Sight sight) {
    const int64_t slot = first_slot + from;
    runs[n_runs++] = KeyRun{span.position + from, count, frame.keys + slot * a.head_dim * size,
                            frame.values + slot * a.head_dim * size, a.head_dim * size,
                            frame.plan->int8_kv ? frame.key_scales + slot : nullptr,
                            frame.plan->int8_kv ? frame.value_scales + slot : nullptr, sight};
  };
  for (const Sight sight : {Sight::pinned, Sight::annex, Sight::window}) {
    for (const HeldRun& held : span.held) {
      if (held.sight != sight) continue;
      const Slots& s = held.slots;
      const int64_t at = a.layer_in_store * s.layer_stride + unit.head * s.head_stride;
      const int64_t scale_at = a.layer_in_store * s.scale_layer_stride + unit.head * s.scale_head_stride;
      runs[n_runs++] = KeyRun{held.first_position, held.count, s.keys + at, s.values + at, s.token_stride,
                              frame.plan->int8_kv ? s.key_scales + scale_at : nullptr,
                              frame.plan->int8_kv ? s.value_scales + scale_at : nullptr, sight, held.log_weights};
    }
    if (sight == Sight::annex) continue;
    int64_t from = 0;
    for (const OwnPins& pins : span.pins) {
      if (sight == Sight::pinned) own(pins.first, pins.count, sight);
      if (sight == Sight::window && from < pins.first) own(from, pins.first - from, sight);
      from = pins.first + pins.count;
    }
    if (sight == Sight::window && from < span.count) own(from, span.count - from, sight);
  }

  const int64_t q_at = (unit.head * frame.n_tokens + span.start) * per_group * a.head_dim;
  AttentionTask task{};
  task.q = frame.q + q_at;
  task.q_clamped = kind.clamped_cos == nullptr ? nullptr : frame.clamped_q + q_at;
  task.n_tokens = span.count;
  task.per_group = per_group;
  task.head_dim = a.head_dim;
  task.position = span.position;
  task.window = kind.window;
  task.runs = runs;
  task.n_runs = n_runs;
  task.scale = a.scale;
  task.out_stride = a.n_heads * a.head_dim;
  task.out = frame.attended + span.start * task.out_stride + unit.head * per_group * a.head_dim;
  table_.attend_rows(task, unit.first, unit.last, scratch);
}

void Stepper::export_queries(const Layer& layer, const Frame& frame, int64_t index, int64_t head) const {
  const AttentionWeights& a = layer.attention;
  const KindPlan& kind = frame.plan->kinds[a.kind];
  const SpanPlan& span = kind.spans[index];
  const int64_t per_group = a.n_heads / a.n_kv_heads, n_spans = static_cast<int64_t>(kind.spans.size());
  const int64_t count = std::min(kind.exported, span.count);
  const int64_t end = (a.layer_in_store * n_spans + index + 1) * kind.exported;
  for (int64_t back = 1; back <= count; ++back) {
    const int64_t token = span.start + span.count - back;
    const uint16_t* const from = frame.q + (head * frame.n_tokens + token) * per_group * a.head_dim;
    std::memcpy(kind.queries + ((end - back) * a.n_heads + head * per_group) * a.head_dim, from,
                static_cast<size_t>(per_group * a.head_dim) * 2);
  }
}

void Stepper::commit(const Layer& layer, const Frame& frame, int64_t index, int64_t head) const {
  const AttentionWeights& a = layer.attention;
  const KindPlan& kind = frame.plan->kinds[a.kind];
  const int64_t size = frame.plan->int8_kv ? 1 : 2, bytes = a.head_dim * size;
  if (kind.queries != nullptr) export_queries(layer, frame, index, head);
  for (const Write& write : kind.spans[index].writes) {
    const Slots& s = write.slots;
    const int64_t from = head * frame.n_tokens + write.token;
    const int64_t at = a.layer_in_store * s.layer_stride + head * s.head_stride;
    std::memcpy(s.keys + at, frame.keys + from * bytes, static_cast<size_t>(write.count * bytes));
    std::memcpy(s.values + at, frame.values + from * bytes, static_cast<size_t>(write.count * bytes));
    if (!frame.plan->int8_kv) continue;
    const int64_t scale_at = a.layer_in_store * s.scale_layer_stride + head * s.scale_head_stride;
    std::memcpy(s.key_scales + scale_at, frame.key_scales + from, static_cast<size_t>(write.count) * 4);
    std::memcpy(s.value_scales + scale_at, frame.value_scales + from, static_cast<size_t>(write.count) * 4);
  }
}

// From projected heads to attended ones, and what the step adds to the ring.
void Stepper::attend(Team& team, const Layer& layer, Frame& frame) {
  const AttentionWeights& a = layer.attention;
  const KindPlan& kind = frame.plan->kinds[a.kind];
  const int64_t n_units = static_cast<int64_t>(frame.units[a.kind].size());
  const int64_t n_heads = static_cast<int64_t>(kind.spans.size()) * a.n_kv_heads;
  if (frame.n_tokens <= kTile && n_units == n_heads) {
    // Nobody but its unit reads what a span's head has in the ring: the threads need not meet in between.
    team.share(n_units, [&](int64_t unit) {
      const int64_t index = unit / a.n_kv_heads, head = unit % a.n_kv_heads;
      const SpanPlan& span = kind.spans[index];
      for (int64_t token = span.start; token < span.start + span.count; ++token) rotate_heads(layer, frame, token, head);
      attend_unit(layer, frame, unit, frame.thread_attention[team.index()]);
      commit(layer, frame, index, head);
    });
    return;
  }
  team.share(frame.n_tokens * a.n_kv_heads, [&](int64_t unit) {
    rotate_heads(layer, frame, unit / a.n_kv_heads, unit % a.n_kv_heads);
  });
  team.share(n_units, [&](int64_t unit) { attend_unit(layer, frame, unit, frame.thread_attention[team.index()]); });
  // Nobody reads the ring any more: what this step adds to it may overwrite what slid out.
  team.share_open(n_heads, [&](int64_t unit) { commit(layer, frame, unit / a.n_kv_heads, unit % a.n_kv_heads); });
}

void Stepper::attend_half(Team& team, const Layer& layer, Frame& frame) {
  const AttentionWeights& a = layer.attention;
  prepare(team, frame, frame.x, frame.dim, &layer.attention_norm, a.wqkv);
  if (team.index() == 0) frame.pending = nullptr;
  share_product(team, {&a.wqkv, Rows::in(frame.rows, Form(a.wqkv), frame.n_tokens), frame.n_tokens, frame.qkv,
                       frame.qkv_stride});
  attend(team, layer, frame);
  prepare(team, frame, frame.attended, a.n_heads * a.head_dim, nullptr, a.wo);
  const bool post = layer.attention_post_norm.weight != nullptr;
  share_product(team, {&a.wo, Rows::in(frame.rows, Form(a.wo), frame.n_tokens), frame.n_tokens,
                       post ? frame.branch : frame.x, frame.dim, post ? Finish::store : Finish::add});
  if (post && team.index() == 0) frame.pending = &layer.attention_post_norm;
  if (post) team.barrier();
}

void Stepper::share_feed_forward(Team& team, Frame& frame, const FeedForward& f, float* out, int64_t dim, Finish finish) {
  const Form into(f.w13), from(f.w2);
  const int64_t width = f.w13.tiles() / 2 * kTile;
  Product first{&f.w13, Rows::in(frame.rows, into, frame.n_tokens), frame.n_tokens, frame.hidden, width, Finish::gate,
                f.activation};
  if (f.w2.kind == Kind::bf16) {
    // Rounding is all that these rows need, so they never lie in memory as floats.
    const Rows rows = Rows::in(frame.hidden_rows, from, frame.n_tokens);
    first.into = rows;
    team.share_open(frame.n_tokens, [&](int64_t row) {
      if (row == 0) table_.clear_rows(from, rows, frame.n_tokens, ceil_div(frame.n_tokens, kTile) * kTile);
      for (int64_t at = width; at < from.padded_k; at += 16) std::memset(rows.at(row, at / 32) + at % 32 * 2, 0, 32);
    });
    share_product(team, first);
    share_product(team, {&f.w2, rows, frame.n_tokens, out, dim, finish});
    return;
  }
  share_product(team, first);
  prepare(team, frame, frame.hidden, width, nullptr, f.w2);
  share_product(team, {&f.w2, Rows::in(frame.rows, from, frame.n_tokens), frame.n_tokens, out, dim, finish});
}

void Stepper::feed_half(Team& team, const Layer& layer, Frame& frame) {
  const FeedForward& f = layer.feed_forward;
  prepare(team, frame, frame.x, frame.dim, &layer.ffn_norm, f.w13);
  if (team.index() == 0) frame.pending = nullptr;
  const bool post = layer.ffn_post_norm.weight != nullptr;
  share_feed_forward(team, frame, f, post ? frame.branch : frame.x, frame.dim, post ? Finish::store : Finish::add);
  if (post && team.index() == 0) frame.pending = &layer.ffn_post_norm;
  if (post) team.barrier();
}

void Stepper::run(const std::vector<const Layer*>& layers, const Plan& plan, float* x, int64_t dim) {
  Frame frame{};
  frame.plan = &plan;
  frame.n_tokens = plan.n_tokens;
  frame.dim = dim;
  frame.x = x;
  const size_t tokens = static_cast<size_t>(plan.n_tokens);
  size_t rows = 0, floats = static_cast<size_t>(dim), qkv = 0, q = 0, kv = 0, heads = 0, attention = 0;
  size_t hidden = 0, hidden_rows = 0;
  const bool one = plan.n_tokens == 1;
  bool post = false;
  const auto fit = [&](const Linear& linear) {
    rows = std::max(rows, Rows::bytes(Form(linear), plan.n_tokens));
    floats = std::max(floats, static_cast<size_t>(linear.padded_k()));
  };
  for (const Layer* layer : layers) {
    const AttentionWeights& a = layer->attention;
    fit(a.wqkv);
    fit(a.wo);
    qkv = std::max(qkv, static_cast<size_t>(a.wqkv.n));
    q = std::max(q, static_cast<size_t>(a.n_heads * a.head_dim));
    kv = std::max(kv, static_cast<size_t>(a.n_kv_heads * a.head_dim));
    heads = std::max(heads, static_cast<size_t>(a.n_kv_heads));
    attention = std::max(attention, table_.attention_scratch_bytes(a.head_dim));
    post = post || layer->attention_post_norm.weight != nullptr || layer->ffn_post_norm.weight != nullptr;
    if (!layer->has_feed_forward) continue;
    fit(layer->feed_forward.w13);
    fit(layer->feed_forward.w2);
    const FeedForward& f = layer->feed_forward;
    if (f.w2.kind == Kind::bf16 && !one) hidden_rows = std::max(hidden_rows, Rows::bytes(Form(f.w2), plan.n_tokens));
    else hidden = std::max(hidden, static_cast<size_t>(f.w13.tiles() / 2 * kTile));
  }
  frame.qkv_stride = static_cast<int64_t>(qkv);
  const auto carve = [&](Carver& carver) {
    frame.rows = carver.take<char>(rows);
    frame.qkv = carver.take<float>(tokens * qkv);
    frame.q = carver.take<uint16_t>(tokens * q);
    frame.clamped_q = carver.take<uint16_t>(tokens * q);
    frame.keys = carver.take<char>(tokens * kv * 2);
    frame.values = carver.take<char>(tokens * kv * 2);
    frame.key_scales = carver.take<float>(tokens * heads);
    frame.value_scales = carver.take<float>(tokens * heads);
    frame.attended = carver.take<float>(tokens * q);
    frame.hidden = carver.take<float>(tokens * hidden);
    frame.hidden_rows = carver.take<char>(hidden_rows);
    frame.branch = carver.take<float>(post || one ? tokens * static_cast<size_t>(dim) : 0);
    frame.thread_floats.clear();
    frame.thread_attention.clear();
    frame.thread_streams.clear();
    frame.thread_rows.clear();
    for (int thread = 0; thread < pool_.size(); ++thread) {
      frame.thread_floats.push_back(carver.take<float>(floats));
      frame.thread_attention.push_back(carver.take<char>(attention));
      frame.thread_streams.push_back(carver.take<float>(one ? static_cast<size_t>(dim) : 0));
      frame.thread_rows.push_back(carver.take<char>(one ? rows : 0));
    }
  };
  Carver measure(nullptr);
  carve(measure);
  Carver real(scratch_.room(measure.used(nullptr)));
  carve(real);

  frame.units.resize(plan.kinds.size());
  for (size_t kind = 0; kind < plan.kinds.size(); ++kind) {
    const Layer* one = nullptr;
    for (const Layer* layer : layers)
      if (layer->attention.kind == static_cast<int64_t>(kind)) one = layer;
    if (one == nullptr) continue;
    const int64_t per_group = one->attention.n_heads / one->attention.n_kv_heads;
    const int64_t n_tasks = static_cast<int64_t>(plan.kinds[kind].spans.size()) * one->attention.n_kv_heads;
    for (const SpanPlan& span : plan.kinds[kind].spans) {
      const int64_t n_rows = span.count * per_group, each = attention_unit_rows(n_rows, n_tasks, pool_.size());
      for (int64_t first = 0; first < n_rows; first += each)
        for (int64_t head = 0; head < one->attention.n_kv_heads; ++head)
          frame.units[kind].push_back({&span, head, first, std::min(first + each, n_rows)});
    }
  }

  region([&](Team& team) {
    if (one) return run_one(team, layers, frame);
    for (const Layer* layer : layers) {
      attend_half(team, *layer, frame);
      if (layer->has_feed_forward) feed_half(team, *layer, frame);
    }
    const Norm* last = frame.pending;
    if (last == nullptr) return;
    team.share(frame.n_tokens, [&](int64_t row) {
      float* own = frame.thread_floats[team.index()];
      table_.normalise(row_of(frame.branch, row, dim), *last, dim, own);
      float* to = row_of(frame.x, row, dim);
      for (int64_t i = 0; i < dim; ++i) to[i] += own[i];
    });
  });
}

void Stepper::multiply(const Linear& linear, const float* x, int64_t x_stride, int64_t n_rows, float* out,
                       int64_t out_stride, const Norm* norm) {
  Frame frame{};
  const Form form(linear);
  const size_t rows = (Rows::bytes(form, n_rows) + 63) / 64 * 64, floats = static_cast<size_t>(linear.padded_k());
  Carver carver(scratch_.room(rows + static_cast<size_t>(pool_.size()) * (floats * 4 + 64)));
  frame.rows = carver.take<char>(rows);
  for (int thread = 0; thread < pool_.size(); ++thread) frame.thread_floats.push_back(carver.take<float>(floats));
  frame.n_tokens = n_rows;
  region([&](Team& team) {
    prepare(team, frame, x, x_stride, norm, linear);
    share_product(team, {&linear, Rows::in(frame.rows, form, n_rows), n_rows, out, out_stride});
  });
}

void Stepper::feed(const FeedForward& network, const float* x, int64_t n_rows, float* out, int64_t dim) {
  Frame frame{};
  const Form into(network.w13), from(network.w2);
  const bool direct = network.w2.kind == Kind::bf16;
  const size_t rows = std::max(Rows::bytes(into, n_rows), direct ? 0 : Rows::bytes(from, n_rows));
  const size_t floats = static_cast<size_t>(std::max(into.padded_k, from.padded_k));
  const size_t hidden = direct ? 0 : static_cast<size_t>(n_rows * network.w13.tiles() / 2 * kTile);
  const auto carve = [&](Carver& carver) {
    frame.rows = carver.take<char>(rows);
    frame.hidden = carver.take<float>(hidden);
    frame.hidden_rows = carver.take<char>(direct ? Rows::bytes(from, n_rows) : 0);
    frame.thread_floats.clear();
    for (int thread = 0; thread < pool_.size(); ++thread) frame.thread_floats.push_back(carver.take<float>(floats));
  };
  Carver measure(nullptr);
  carve(measure);
  Carver real(scratch_.room(measure.used(nullptr)));
  carve(real);
  frame.n_tokens = n_rows;
  region([&](Team& team) {
    prepare(team, frame, x, dim, nullptr, network.w13);
    share_feed_forward(team, frame, network, out, dim, Finish::store);
  });
}

void Stepper::normalise(const float* x, const Norm& norm, int64_t n_rows, int64_t k, float* out) {
  for (int64_t row = 0; row < n_rows; ++row) table_.normalise(x + row * k, norm, k, out + row * k);
}

void Stepper::pack(const float* x, int64_t n_rows, int64_t k, int64_t rotation, char* data, float* scale) {
  const int64_t padded_k = ceil_div(k, kBlock) * kBlock, tile_bytes = padded_k * kTile;
  Carver carver(scratch_.room(static_cast<size_t>(pool_.size()) * (static_cast<size_t>(padded_k) * 4 + 64)));
  std::vector<float*> floats;
  for (int thread = 0; thread < pool_.size(); ++thread) floats.push_back(carver.take<float>(static_cast<size_t>(padded_k)));
  region([&](Team& team) {
    team.share(ceil_div(n_rows, kTile), [&](int64_t tile) {
      for (int64_t row = tile * kTile; row < std::min(n_rows, (tile + 1) * kTile); ++row)
        table_.pack_row(x + row * k, k, padded_k, rotation, row % kTile, data + tile * tile_bytes, scale + row,
                        floats[team.index()]);
    });
  });
}

}  // namespace sash
