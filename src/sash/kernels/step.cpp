#include "step.h"

#include <algorithm>
#include <cstring>

#include "step_frame.h"

namespace sash {

namespace {

// Rows of activations are multiplied in blocks of so many, and of twice as many where all blocks of a row are one short
// panel: each block reads all weights anew, and unpacks them.
constexpr int64_t kRowBlock = 256;

float* row_of(float* x, int64_t row, int64_t stride) { return x + row * stride; }

}  // namespace

void Stepper::region(const std::function<void(Team&)>& body) {
  pool_.run([&](Team& team) {
    table_.enter();
    body(team);
    table_.leave();
  });
}

void Stepper::share_product(Team& team, const Product& product) {
  if (product.n_rows <= kTile) {
    share_few(team, product);
    team.barrier();
    return;
  }
  const Linear& linear = *product.linear;
  const int64_t blocks = ceil_div(product.n_rows, product.rows.blocks <= kDepth ? 2 * kRowBlock : kRowBlock);
  const int64_t rows = ceil_div(ceil_div(product.n_rows, blocks), 32) * 32;
  const bool many = product.n_rows > kFewRows;
  const int64_t tiles = linear.tiles(), fair = ceil_div(tiles * std::min<int64_t>(blocks, 2), (many ? 16 : 4) * team.size());
  int64_t chunk = many ? 8 : std::max<int64_t>(2, kClaimBytes / linear.tile_bytes());
  chunk = std::min(chunk, std::max<int64_t>(2, fair)) / 2 * 2;
  const int64_t chunks = ceil_div(tiles, chunk);
  team.share(blocks * chunks, [&](int64_t unit) {
    const int64_t row = unit / chunks * rows, tile = unit % chunks * chunk;
    if (row >= product.n_rows) return;
    table_.multiply(product, tile, std::min(tile + chunk, tiles), row, std::min(rows, product.n_rows - row));
  });
}

void Stepper::add_branch(Frame& frame, const Norm& post, int64_t row, float* own) {
  table_.normalise(row_of(frame.branch, row, frame.dim), post, frame.dim, own);
  float* to = row_of(frame.x, row, frame.dim);
  for (int64_t i = 0; i < frame.dim; ++i) to[i] += own[i];
}

void Stepper::prepare(Team& team, Frame& frame, const float* x, int64_t stride, const Norm* norm,
                      const Linear& linear) {
  const Form form(linear);
  const Rows rows = Rows::in(frame.rows, form, frame.n_tokens);
  const Norm* post = frame.pending;
  team.share(frame.n_tokens, [&](int64_t row) {
    float* own = frame.thread_floats[team.index()];
    if (post != nullptr) add_branch(frame, *post, row, own);
    table_.prepare_row(x + row * stride, norm, form, rows, row, own);
    if (row == 0) table_.clear_rows(form, rows, frame.n_tokens, ceil_div(frame.n_tokens, kTile) * kTile);
  });
}

void Stepper::attend_half(Team& team, const Layer& layer, Frame& frame) {
  const AttentionWeights& a = layer.attention;
  prepare(team, frame, frame.x, frame.dim, &layer.attention_norm, a.wqkv);
  if (team.index() == 0) frame.pending = nullptr;
  share_product(team, {&a.wqkv, Rows::in(frame.rows, Form(a.wqkv), frame.n_tokens), frame.n_tokens, frame.qkv,
                       frame.qkv_stride});
  Ahead nothing;
  attend(team, layer, frame, nothing);
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

void Stepper::run(const std::vector<const Layer*>& layers, const Plan& plan, float* x, int64_t dim, const Norm* last) {
  Frame frame{};
  frame.plan = &plan;
  frame.n_tokens = plan.n_tokens;
  frame.dim = dim;
  frame.x = x;
  frame.lay_out(layers, table_, pool_.size(), scratch_);
  frame.share_attention(layers, pool_.size());
  lookups_.resize(static_cast<size_t>(pool_.size()));
  region([&](Team& team) {
    if (plan.n_tokens == 1) return run_one(team, layers, frame, last);
    for (const Layer* layer : layers) {
      attend_half(team, *layer, frame);
      if (layer->has_feed_forward) feed_half(team, *layer, frame);
    }
    const Norm* const post = frame.pending;
    if (post == nullptr && last == nullptr) return;
    team.share(frame.n_tokens, [&](int64_t row) {
      if (post != nullptr) add_branch(frame, *post, row, frame.thread_floats[team.index()]);
      if (last != nullptr) table_.normalise(row_of(x, row, dim), *last, dim, row_of(x, row, dim));
    });
  });
}

void Stepper::unpack(const Linear& linear, const int64_t* rows, int64_t count, float factor, float* out) {
  const auto one = [&](int64_t row) { table_.unpack_row(linear, rows[row], factor, out + row * linear.k); };
  if (count <= kTile) {  // Sooner done than threads are woken.
    for (int64_t row = 0; row < count; ++row) one(row);
    return;
  }
  region([&](Team& team) { team.share(count, one); });
}

void Stepper::multiply(const Linear& linear, const float* x, int64_t x_stride, int64_t n_rows, float* out,
                       int64_t out_stride, const Norm* norm) {
  Frame frame{};
  const Form form(linear);
  scratch_.carve([&](Carver& carver) {
    frame.rows = carver.take<char>(Rows::bytes(form, n_rows));
    frame.thread_rows = carver.take_each<char>(pool_.size(), n_rows == 1 ? Rows::bytes(form, 1) : 0);
    frame.thread_floats = carver.take_each<float>(pool_.size(), static_cast<size_t>(linear.padded_k()));
  });
  frame.n_tokens = n_rows;
  region([&](Team& team) {
    if (n_rows == 1) return multiply_one(team, frame, x, norm, linear, out);
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
  scratch_.carve([&](Carver& carver) {
    frame.rows = carver.take<char>(rows);
    frame.hidden = carver.take<float>(hidden);
    frame.hidden_rows = carver.take<char>(direct ? Rows::bytes(from, n_rows) : 0);
    frame.thread_floats = carver.take_each<float>(pool_.size(), floats);
  });
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
  std::vector<float*> floats;
  scratch_.carve([&](Carver& carver) { floats = carver.take_each<float>(pool_.size(), static_cast<size_t>(padded_k)); });
  region([&](Team& team) {
    team.share(ceil_div(n_rows, kTile), [&](int64_t tile) {
      for (int64_t row = tile * kTile; row < std::min(n_rows, (tile + 1) * kTile); ++row)
        table_.pack_row(x + row * k, k, padded_k, rotation, row % kTile, data + tile * tile_bytes, scale + row,
                        floats[team.index()]);
    });
  });
}

}  // namespace sash
