// Compiled once for each instruction set, with SASH_ISA as the name of the namespace.
#include "activations_isa.h"
#include "attention_isa.h"
#include "heads_isa.h"
#include "limits_isa.h"
#include "linear_amx_int4.h"
#include "linear_runs.h"
#include "rank_isa.h"
#include "table.h"

#define SASH_NAME(isa) SASH_TEXT(isa)
#define SASH_TEXT(text) #text

namespace sash::SASH_ISA {

namespace {

#if defined(__AMX_TILE__)
void enter() { tile_config(); }
void leave() { tile_release(); }
void multiply(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  multiply_by_tiles(product, first, last, row, count);
  if (streams(product)) _mm_sfence();  // What went past the caches is there before other threads are told of it.
}
void multiply_runs(const Product& product, int64_t tile, int64_t count, int64_t apart) {
  multiply_runs_by_tiles(product, tile, count, apart);
}
#else
void enter() {}
void leave() {}
void multiply(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  multiply_by_vectors(product, first, last, row, count);
}
void multiply_runs(const Product& product, int64_t tile, int64_t count, int64_t apart) {
  multiply_runs_by_vectors(product, tile, count, apart);
}
#endif

}  // namespace

const KernelTable& table() {
  static const KernelTable filled{
      SASH_NAME(SASH_ISA), enter,     leave,     prepare_row, clear_rows,
      multiply,            multiply_runs, normalise, turn_head, keep_head,   pack_row, unpack_row,
      attend_rows,         attention_scratch_bytes, rank_blocks, share_blocks,
  };
  return filled;
}

}  // namespace sash::SASH_ISA
