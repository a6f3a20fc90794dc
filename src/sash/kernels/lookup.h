// What a token looks up before it attends: blocks of keys outside of its window.
#pragma once

#include <cstdint>
#include <vector>

#include "rank.h"

namespace sash {

// The blocks that a row has out of sight, and which of them lie in its annex. All layers of a store have one.
struct Lookup {
  std::vector<RankedStretch> stretches;
  int64_t first, n_blocks, block;  // The number of the first block; blocks; tokens of each.
  int64_t n_chosen, n_candidates, n_shared;
  bool whole;  // All blocks are ranked, and the best ones become candidates; else these are, and those that heads share.
  std::vector<int64_t> left_out;  // Blocks, counted from the first one, that are never chosen.
  int64_t* tags;        // [layer][key/value head][n_chosen]: what lies in each place of the annex, as ClampedKeys tags it.
  int64_t* candidates;  // [layer][key/value head][n_candidates]: blocks, counted from the first one; -1 for none yet.
  const int64_t* shared;  // [n_shared]: candidates of every head; -1 for none.
  // Keys farther away than their layer was trained to see are turned nearer: see sash.network.clamped_keys. Of each
  // layer the limit, the stride of its anchor, and the address of its angles a position; null where none is.
  int64_t length;
  const int64_t *limits, *strides;
  const double* const* frequencies;

  // How many positions a layer's block is moved by.
  int64_t shift(int64_t layer, int64_t index) const;
  int64_t tag(int64_t layer, int64_t index) const;
  const RankedStretch& stretch_of(int64_t index) const;
};

// What a thread needs to look something up.
struct LookupScratch {
  std::vector<float> products, shares;
  std::vector<int64_t> blocks, order, wanted, held, kept;  // Tags: those wanted, and what was there, and wanted ones sorted.
  std::vector<RankedKeys> parts;
};

}  // namespace sash
