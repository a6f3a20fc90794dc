// Which blocks of keys outside of the window queries want most.
#include <algorithm>
#include <cfloat>
#include <cstring>

#include "step.h"

namespace sash {

namespace {

constexpr int64_t kClaims = 8;  // Of each thread, at least, where there are stretches enough.

}  // namespace

std::vector<RankedStretch> stretches_of(const int64_t* table, int64_t n_stretches) {
  std::vector<RankedStretch> stretches;
  int64_t first = 0;
  for (const int64_t* row = table; n_stretches > 0; --n_stretches, row += 9) {
    stretches.push_back({reinterpret_cast<const char*>(row[0]), reinterpret_cast<const float*>(row[1]), first, row[2],
                         row[3], row[4], row[5], row[6], row[7], row[8]});
    first += row[2];
  }
  return stretches;
}

void leave_out(const std::vector<int64_t>& blocks, float* products, int64_t n_rows, int64_t n_blocks, int64_t stride) {
  for (int64_t row = 0; row < n_rows; ++row, products += stride) {
    for (const int64_t block : blocks) products[block] = -FLT_MAX;
    std::fill(products + n_blocks, products + stride, -FLT_MAX);
  }
}

void order_blocks(const float* share, int64_t n_blocks, int64_t n_chosen, std::vector<int64_t>& order) {
  order.resize(static_cast<size_t>(n_blocks));
  for (int64_t block = 0; block < n_blocks; ++block) order[static_cast<size_t>(block)] = block;
  const auto more = [&](int64_t a, int64_t b) { return share[a] > share[b] || (share[a] == share[b] && a < b); };
  if (n_chosen < n_blocks) std::nth_element(order.begin(), order.begin() + n_chosen, order.end(), more);
}

void Stepper::rank(const Ranking& r, const std::vector<RankedStretch>& stretches, int64_t n_blocks, int64_t* out) {
  const int64_t per_group = r.n_heads / r.n_kv_heads, n_rows = r.n_tokens * per_group;
  const int64_t n_units = r.n_layers * r.n_kv_heads, stride = (n_blocks + 15) / 16 * 16;
  uint16_t* q = nullptr;
  float *products = nullptr, *shares = nullptr;
  scratch_.carve([&](Carver& carver) {
    q = carver.take<uint16_t>(static_cast<size_t>(n_units * n_rows * r.head_dim));
    products = carver.take<float>(static_cast<size_t>(n_units * n_rows * stride));
    shares = carver.take<float>(static_cast<size_t>(n_units * stride));
  });
  for (int64_t unit = 0; unit < n_units; ++unit)
    for (int64_t row = 0; row < n_rows; ++row) {
      const uint16_t* from = r.queries + unit / r.n_kv_heads * r.layer_step + row / per_group * r.token_step;
      from += (unit % r.n_kv_heads * per_group + row % per_group) * r.head_dim;
      std::memcpy(q + (unit * n_rows + row) * r.head_dim, from, static_cast<size_t>(r.head_dim) * 2);
    }
  const int64_t n_stretches = static_cast<int64_t>(stretches.size());
  // Queries are laid out anew for every claim: no more claims than threads need to end together.
  const int64_t n_claims = std::min(n_stretches, 1 + kClaims * pool_.size() / n_units);
  std::vector<std::vector<int64_t>> orders(static_cast<size_t>(pool_.size()));
  region([&](Team& team) {
    std::vector<RankedKeys> parts;
    team.share(n_units * n_claims, [&](int64_t index) {
      const int64_t unit = index / n_claims, layer = unit / r.n_kv_heads, head = unit % r.n_kv_heads;
      const int64_t claim = index % n_claims, last = (claim + 1) * n_stretches / n_claims;
      parts.clear();
      for (int64_t at = claim * n_stretches / n_claims; at < last; ++at) {
        const RankedStretch& s = stretches[static_cast<size_t>(at)];
        parts.push_back(s.keys_of(layer, head));
      }
      table_.rank_blocks({q + unit * n_rows * r.head_dim, n_rows, r.head_dim, parts.data(),
                          static_cast<int64_t>(parts.size()), r.token_stride, r.block,
                          products + unit * n_rows * stride, stride});
    });
    team.share(n_units, [&](int64_t unit) {
      float* const own = products + unit * n_rows * stride;
      leave_out(r.left_out, own, n_rows, n_blocks, stride);
      float* const share = shares + unit * stride;
      table_.share_blocks({own, n_rows, n_blocks, stride, r.scale, share});
      std::vector<int64_t>& order = orders[static_cast<size_t>(team.index())];
      order_blocks(share, n_blocks, r.n_chosen, order);
      std::sort(order.begin(), order.begin() + r.n_chosen);
      std::copy_n(order.begin(), r.n_chosen, out + unit * r.n_chosen);
    });
  });
}

}  // namespace sash
