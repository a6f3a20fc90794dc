#include "step_frame.h"

#include <algorithm>

namespace sash {

namespace {

// What the widest of the layers needs: bytes of prepared rows, of a unit's attention, and all else in numbers a token.
struct Widths {
  size_t rows = 0, floats = 0, qkv = 0, q = 0, kv = 0, heads = 0, attention = 0, hidden = 0, hidden_rows = 0;
  bool post = false;

  void fit(const Linear& linear, int64_t n_tokens) {
    rows = std::max(rows, Rows::bytes(Form(linear), n_tokens));
    floats = std::max(floats, static_cast<size_t>(linear.padded_k()));
  }

  void fit(const Layer& layer, const KernelTable& table, int64_t n_tokens) {
    const AttentionWeights& a = layer.attention;
    fit(a.wqkv, n_tokens);
    fit(a.wo, n_tokens);
    qkv = std::max(qkv, static_cast<size_t>(a.wqkv.n));
    q = std::max(q, static_cast<size_t>(a.n_heads * a.head_dim));
    kv = std::max(kv, static_cast<size_t>(a.n_kv_heads * a.head_dim));
    heads = std::max(heads, static_cast<size_t>(a.n_kv_heads));
    attention = std::max(attention, table.attention_scratch_bytes(a.head_dim));
    post = post || layer.attention_post_norm.weight != nullptr || layer.ffn_post_norm.weight != nullptr;
    if (!layer.has_feed_forward) return;
    const FeedForward& f = layer.feed_forward;
    fit(f.w13, n_tokens);
    fit(f.w2, n_tokens);
    if (f.w2.kind == Kind::bf16 && n_tokens > 1)
      hidden_rows = std::max(hidden_rows, Rows::bytes(Form(f.w2), n_tokens));
    else
      hidden = std::max(hidden, static_cast<size_t>(f.w13.tiles() / 2 * kTile));
  }
};

}  // namespace

void Stepper::Frame::lay_out(const std::vector<const Layer*>& layers, const KernelTable& table, int n_threads,
                             Scratch& scratch) {
  Widths widths;
  widths.floats = static_cast<size_t>(dim);
  for (const Layer* layer : layers) widths.fit(*layer, table, n_tokens);
  const size_t tokens = static_cast<size_t>(n_tokens), width = static_cast<size_t>(dim);
  const bool one = n_tokens == 1;
  qkv_stride = static_cast<int64_t>(widths.qkv);
  scratch.carve([&](Carver& carver) {
    rows = carver.take<char>(widths.rows);
    qkv = carver.take<float>(tokens * widths.qkv);
    q = carver.take<uint16_t>(tokens * widths.q);
    clamped_q = carver.take<uint16_t>(tokens * widths.q);
    keys = carver.take<char>(tokens * widths.kv * 2);
    values = carver.take<char>(tokens * widths.kv * 2);
    key_scales = carver.take<float>(tokens * widths.heads);
    value_scales = carver.take<float>(tokens * widths.heads);
    attended = carver.take<float>(tokens * widths.q);
    hidden = carver.take<float>(tokens * widths.hidden);
    hidden_rows = carver.take<char>(widths.hidden_rows);
    branch = carver.take<float>(widths.post || one ? tokens * width : 0);
    thread_floats = carver.take_each<float>(n_threads, widths.floats);
    thread_attention = carver.take_each<char>(n_threads, widths.attention);
    thread_streams = carver.take_each<float>(n_threads, one ? width : 0);
    thread_rows = carver.take_each<char>(n_threads, one ? widths.rows : 0);
  });
}

void Stepper::Frame::share_attention(const std::vector<const Layer*>& layers, int n_threads) {
  units.resize(plan->kinds.size());
  for (size_t kind = 0; kind < plan->kinds.size(); ++kind) {
    const auto of_kind = std::find_if(layers.begin(), layers.end(), [&](const Layer* layer) {
      return layer->attention.kind == static_cast<int64_t>(kind);
    });
    if (of_kind == layers.end()) continue;
    const std::vector<SpanPlan>& spans = plan->kinds[kind].spans;
    const int64_t n_kv_heads = (*of_kind)->attention.n_kv_heads, per_group = (*of_kind)->attention.n_heads / n_kv_heads;
    const int64_t n_tasks = static_cast<int64_t>(spans.size()) * n_kv_heads;
    for (const SpanPlan& span : spans) {
      const int64_t n_rows = span.count * per_group, each = attention_unit_rows(n_rows, n_tasks, n_threads);
      for (int64_t first = 0; first < n_rows; first += each)
        for (int64_t head = 0; head < n_kv_heads; ++head)
          units[kind].push_back({&span, head, first, std::min(first + each, n_rows)});
    }
  }
}

}  // namespace sash
