// Tokens that rank for themselves: what a head asks decides, before it attends, which blocks lie in its annex.
#include "lookup.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "step_frame.h"

namespace sash {

namespace {

const std::vector<int64_t> kNone;

// A kept key or value as floats.
void take_head(const char* from, const float* scale, int64_t head_dim, float* out) {
  if (scale != nullptr) {
    for (int64_t i = 0; i < head_dim; ++i) out[i] = static_cast<float>(static_cast<int8_t>(from[i])) * *scale;
    return;
  }
  for (int64_t i = 0; i < head_dim; ++i) {
    uint16_t half;
    std::memcpy(&half, from + 2 * i, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    std::memcpy(out + i, &bits, 4);
  }
}

// One block of a layer and head.
RankedKeys block_of(const Lookup& l, int64_t layer, int64_t head, int64_t index, int64_t key_bytes) {
  const RankedStretch& s = l.stretch_of(index);
  const RankedKeys all = s.keys_of(layer, head);
  const int64_t at = (index - s.first) * l.block;
  return {all.keys + at * key_bytes, all.scales == nullptr ? nullptr : all.scales + at, index, 1};
}

// The blocks that are ranked: all, or candidates, each a part of its own.
void list_parts(const Lookup& l, int64_t layer, int64_t head, const std::vector<int64_t>* candidates, int64_t key_bytes,
                std::vector<RankedKeys>& parts) {
  parts.clear();
  if (candidates == nullptr) {
    for (const RankedStretch& s : l.stretches) parts.push_back(s.keys_of(layer, head));
    return;
  }
  for (const int64_t block : *candidates) {
    RankedKeys own = block_of(l, layer, head, block, key_bytes);
    own.first = static_cast<int64_t>(parts.size());
    parts.push_back(own);
  }
}

}  // namespace

int64_t Lookup::shift(int64_t layer, int64_t index) const {
  if (limits == nullptr) return 0;
  const int64_t position = (first + index) * block, limit = limits[layer], stride = strides[layer];
  return position < length - limit ? (length / stride + 1) * stride - limit - position : 0;
}

int64_t Lookup::tag(int64_t layer, int64_t index) const {
  const int64_t moves = shift(layer, index) > 0 ? length / strides[layer] + 1 : 0;
  return (first + index) | moves << 32;
}

const RankedStretch& Lookup::stretch_of(int64_t index) const {
  const auto next = std::upper_bound(stretches.begin(), stretches.end(), index,
                                     [](int64_t at, const RankedStretch& s) { return at < s.first; });
  return *(next - 1);
}

void Stepper::copy_block(const Layer& layer, const Frame& frame, const SpanPlan& span, int64_t head, int64_t index,
                         int64_t place, int64_t shift) {
  const Lookup& l = *span.lookup;
  const AttentionWeights& a = layer.attention;
  const Slots& s = std::find_if(span.held.begin(), span.held.end(), [](const HeldRun& held) {
                     return held.sight == Sight::annex;
                   })->slots;
  const int64_t to = place * l.block, bytes = s.token_stride;
  const RankedStretch& stretch = l.stretch_of(index);
  const RankedKeys from = block_of(l, a.layer_in_store, head, index, bytes);
  const int64_t slot = a.layer_in_store * s.layer_stride + head * s.head_stride + to * bytes;
  std::memcpy(s.keys + slot, from.keys, static_cast<size_t>(l.block * bytes));
  std::memcpy(s.values + slot, from.keys + stretch.to_values, static_cast<size_t>(l.block * bytes));
  float* key_scales = nullptr;
  if (from.scales != nullptr) {
    const int64_t scale_slot = a.layer_in_store * s.scale_layer_stride + head * s.scale_head_stride + to;
    key_scales = s.key_scales + scale_slot;
    std::memcpy(key_scales, from.scales, static_cast<size_t>(l.block) * 4);
    std::memcpy(s.value_scales + scale_slot, from.scales + stretch.to_value_scales, static_cast<size_t>(l.block) * 4);
  }
  if (shift == 0) return;
  const int64_t half = a.head_dim / 2, mixing = frame.plan->mixing;
  float cos[kMaxHeadDim / 2], sin[kMaxHeadDim / 2], one[kMaxHeadDim / 2], zero[kMaxHeadDim / 2] = {};
  for (int64_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(shift) * l.frequencies[a.layer_in_store][i];
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
    one[i] = 1.0f;
  }
  float key[kMaxHeadDim], turned[kMaxHeadDim];
  for (int64_t token = 0; token < l.block; ++token) {
    char* const kept = s.keys + slot + token * bytes;
    float* const scale = key_scales == nullptr ? nullptr : key_scales + token;
    take_head(kept, scale, a.head_dim, key);
    if (mixing > 1) {  // Mixed once more a key is as it was.
      table_.turn_head(key, Norm{}, Angles{one, zero, a.interleaved_rope, mixing}, a.head_dim, turned);
      std::memcpy(key, turned, static_cast<size_t>(a.head_dim) * 4);
    }
    table_.turn_head(key, Norm{}, Angles{cos, sin, a.interleaved_rope, mixing}, a.head_dim, turned);
    table_.keep_head(turned, a.head_dim, kept, scale);
  }
}

void Stepper::look_up(Team& team, const Layer& layer, const Frame& frame, int64_t index, int64_t head) {
  const AttentionWeights& a = layer.attention;
  const SpanPlan& span = frame.plan->kinds[a.kind].spans[index];
  if (span.lookup == nullptr) return;
  const Lookup& l = *span.lookup;
  LookupScratch& own = lookups_[static_cast<size_t>(team.index())];
  const int64_t n_rows = a.n_heads / a.n_kv_heads, unit = a.layer_in_store * a.n_kv_heads + head;
  const int64_t key_bytes = a.head_dim * (frame.plan->int8_kv ? 1 : 2);
  int64_t* const candidates = l.candidates + unit * l.n_candidates;
  const bool whole = l.whole || candidates[0] < 0;
  if (!whole) {
    own.blocks.assign(candidates, candidates + l.n_candidates);
    std::copy_if(l.shared, l.shared + l.n_shared, std::back_inserter(own.blocks), [](int64_t block) { return block >= 0; });
    std::sort(own.blocks.begin(), own.blocks.end());
    own.blocks.erase(std::unique(own.blocks.begin(), own.blocks.end()), own.blocks.end());
  }
  const int64_t n = whole ? l.n_blocks : static_cast<int64_t>(own.blocks.size()), stride = (n + 15) / 16 * 16;
  own.products.resize(static_cast<size_t>(n_rows * stride));
  own.shares.resize(static_cast<size_t>(stride));
  list_parts(l, a.layer_in_store, head, whole ? nullptr : &own.blocks, key_bytes, own.parts);
  table_.rank_blocks({frame.q + (head * frame.n_tokens + span.start) * n_rows * a.head_dim, n_rows, a.head_dim,
                      own.parts.data(), static_cast<int64_t>(own.parts.size()), key_bytes, l.block,
                      own.products.data(), stride});
  leave_out(whole ? l.left_out : kNone, own.products.data(), n_rows, n, stride);
  table_.share_blocks({own.products.data(), n_rows, n, stride, a.scale, own.shares.data()});

  if (whole) {
    order_blocks(own.shares.data(), n, l.n_candidates, own.order);
    std::copy_n(own.order.begin(), l.n_candidates, candidates);
    std::sort(candidates, candidates + l.n_candidates);
    own.blocks.assign(candidates, candidates + l.n_candidates);
    for (size_t i = 0; i < own.blocks.size(); ++i) own.shares[i] = own.shares[static_cast<size_t>(own.blocks[i])];
  }
  order_blocks(own.shares.data(), static_cast<int64_t>(own.blocks.size()), l.n_chosen, own.order);
  std::sort(own.order.begin(), own.order.begin() + l.n_chosen);

  own.wanted.clear();
  for (int64_t i = 0; i < l.n_chosen; ++i)
    own.wanted.push_back(l.tag(a.layer_in_store, own.blocks[static_cast<size_t>(own.order[static_cast<size_t>(i)])]));
  bring(layer, frame, span, head, own);
}

// What is wanted and there already stays where it is.
void Stepper::bring(const Layer& layer, const Frame& frame, const SpanPlan& span, int64_t head, LookupScratch& own) {
  const Lookup& l = *span.lookup;
  const AttentionWeights& a = layer.attention;
  int64_t* const tags = l.tags + (a.layer_in_store * a.n_kv_heads + head) * l.n_chosen;
  const auto sorted = [&](const int64_t* from, std::vector<int64_t>& into) {
    into.assign(from, from + l.n_chosen);
    std::sort(into.begin(), into.end());
  };
  sorted(tags, own.held);
  sorted(own.wanted.data(), own.kept);
  const auto among = [](const std::vector<int64_t>& all, int64_t tag) {
    return std::binary_search(all.begin(), all.end(), tag);
  };
  int64_t place = 0;
  for (const int64_t tag : own.wanted) {
    if (among(own.held, tag)) continue;
    while (among(own.kept, tags[place])) ++place;  // As many are free as are missing.
    const int64_t block = (tag & 0xFFFFFFFF) - l.first;
    copy_block(layer, frame, span, head, block, place, l.shift(a.layer_in_store, block));
    tags[place++] = tag;
  }
}

}  // namespace sash
