// The attention of a step: heads are turned, meet the keys of ring and step, and are committed to the ring.
#include <algorithm>
#include <cstring>

#include "step_frame.h"

namespace sash {

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
void Stepper::attend(Team& team, const Layer& layer, Frame& frame, Ahead& ahead) {
  const AttentionWeights& a = layer.attention;
  const KindPlan& kind = frame.plan->kinds[a.kind];
  const int64_t n_units = static_cast<int64_t>(frame.units[a.kind].size());
  const int64_t n_heads = static_cast<int64_t>(kind.spans.size()) * a.n_kv_heads;
  if (frame.n_tokens <= kTile && n_units == n_heads) {
    // Nobody but its unit reads what a span's head has in the ring: the threads need not meet in between.
    team.share_open(n_units, [&](int64_t unit) {
      const int64_t index = unit / a.n_kv_heads, head = unit % a.n_kv_heads;
      const SpanPlan& span = kind.spans[index];
      for (int64_t token = span.start; token < span.start + span.count; ++token) rotate_heads(layer, frame, token, head);
      look_up(team, layer, frame, index, head);
      attend_unit(layer, frame, unit, frame.thread_attention[team.index()]);
      commit(layer, frame, index, head);
    });
    ahead.meet(team);
    return;
  }
  team.share(frame.n_tokens * a.n_kv_heads, [&](int64_t unit) {
    rotate_heads(layer, frame, unit / a.n_kv_heads, unit % a.n_kv_heads);
  });
  if (kind.looks_up)
    team.share(n_heads, [&](int64_t unit) { look_up(team, layer, frame, unit / a.n_kv_heads, unit % a.n_kv_heads); });
  team.share(n_units, [&](int64_t unit) { attend_unit(layer, frame, unit, frame.thread_attention[team.index()]); });
  // Nobody reads the ring any more: what this step adds to it may overwrite what slid out.
  team.share_open(n_heads, [&](int64_t unit) { commit(layer, frame, unit / a.n_kv_heads, unit % a.n_kv_heads); });
}

}  // namespace sash
