// One step of packed tokens through fused layers: the phases of a layer, each shared out over the pool's threads.
#pragma once

#include <memory>
#include <vector>

#include "ahead.h"
#include "attention.h"
#include "blocks.h"
#include "linear.h"
#include "lookup.h"
#include "pool.h"
#include "scratch.h"
#include "table.h"

namespace sash {

// A gated feed-forward network: w2 (act(w1 x) * w3 x). The tiles of w1 and w3 alternate in w13.
struct FeedForward {
  Linear w13, w2;
  Activation activation;
};

struct AttentionWeights {
  Linear wqkv, wo;
  int64_t n_heads, n_kv_heads, head_dim;
  float scale;
  Norm q_norm, k_norm;       // Weights of head_dim; null for none.
  bool interleaved_rope;     // Whether neighbours are a pair, or components half a head apart.
  int64_t kind;              // Which of the plan's kinds it belongs to.
  int64_t layer_in_store;
};

struct Layer {
  AttentionWeights attention;
  Norm attention_norm, attention_post_norm, ffn_norm, ffn_post_norm;  // Post norms: null for none.
  bool has_feed_forward = false;
  FeedForward feed_forward;
};

// Where a run of slots lies in a store: addresses for layer 0 and head 0, and strides in bytes. Scales are float32, one
// a slot, for int8 stores only.
struct Slots {
  char* keys;
  char* values;
  int64_t layer_stride, head_stride, token_stride;
  float* key_scales;
  float* value_scales;
  int64_t scale_layer_stride, scale_head_stride;
};

// A run of consecutive positions that the cache holds for a sequence.
struct HeldRun {
  int64_t first_position, count;
  Sight sight;
  Slots slots;
  const float* log_weights = nullptr;  // Of an annex: one a slot, the same in all layers and heads; null for none.
};

// Tokens [token, token + count) of the step are committed to consecutive slots.
struct Write {
  int64_t token, count;
  Slots slots;
};

// Of a span's tokens, those from its `first` on that are pinned.
struct OwnPins {
  int64_t first, count;
};

struct SpanPlan {
  int64_t start, count, position;
  std::vector<HeldRun> held;
  std::vector<Write> writes;
  std::vector<OwnPins> pins;
  std::shared_ptr<const Lookup> lookup;  // Of a span of one token that looks blocks up before it attends.
};

// What the layers of one pattern and rotary embedding do in a step.
struct KindPlan {
  int64_t window;
  const float *cos, *sin;                  // [tokens][head_dim / 2]
  const float *clamped_cos, *clamped_sin;  // For queries against pins; null where nothing is clamped.
  std::vector<SpanPlan> spans;
  // Where queries of each span's last tokens are copied to, as they meet keys; null for nowhere:
  // bfloat16 [layer of the store][span][exported][heads][head_dim], the last token last.
  uint16_t* queries = nullptr;
  int64_t exported = 0;
  bool looks_up = false;  // Whether a span does.
};

struct Plan {
  int64_t n_tokens;
  bool int8_kv;
  int64_t mixing;  // Components of queries and keys that are mixed before keys are kept; 1 for none.
  std::vector<KindPlan> kinds;
};

class Stepper {
 public:
  Stepper(Pool& pool, const KernelTable& table) : pool_(pool), table_(table) {}

  // Runs layers in turn over x, float32 [n_tokens][dim], in place. Feed-forward halves are left out where a layer has
  // none. What comes out is normalised by `last`, if there is one.
  void run(const std::vector<const Layer*>& layers, const Plan& plan, float* x, int64_t dim, const Norm* last);

  // Some rows of the weight that a linear stands for, times `factor`: [count][k].
  void unpack(const Linear& linear, const int64_t* rows, int64_t count, float factor, float* out);

  // out = x W^T, [n_rows][n].
  void multiply(const Linear& linear, const float* x, int64_t x_stride, int64_t n_rows, float* out,
                int64_t out_stride, const Norm* norm);

  // out = the network's answer to x, both [n_rows][dim].
  void feed(const FeedForward& network, const float* x, int64_t n_rows, float* out, int64_t dim);

  // The blocks that the queries want most, ascending: out [layer][key/value head][n_chosen]. See rank.h.
  void rank(const Ranking& ranking, const std::vector<RankedStretch>& stretches, int64_t n_blocks, int64_t* out);

  // out = x / rms(x) * weight, [n_rows][k].
  void normalise(const float* x, const Norm& norm, int64_t n_rows, int64_t k, float* out);

  // Packs rows of weights, float32 [n_rows][k], as int8 tiles with a scale a row.
  void pack(const float* x, int64_t n_rows, int64_t k, int64_t rotation, char* data, float* scale);

  // Packs rows of blocks as int4, where `into` has float16 scales, or as int8. False where a value is not finite.
  bool pack_blocks(const StoredRows& stored, int64_t rotation, const PackedTiles& into);

 private:
  struct Frame;
  void attend_half(Team& team, const Layer& layer, Frame& frame);
  // Whoever waits for others at the end asks for what is `ahead`.
  void attend(Team& team, const Layer& layer, Frame& frame, Ahead& ahead);
  void feed_half(Team& team, const Layer& layer, Frame& frame);
  void rotate_heads(const Layer& layer, Frame& frame, int64_t token, int64_t head);
  void attend_unit(const Layer& layer, Frame& frame, int64_t unit, char* scratch);
  void export_queries(const Layer& layer, const Frame& frame, int64_t index, int64_t head) const;
  // Ranks blocks by what a head asks and copies the best ones to its annex: lookup.cpp.
  void look_up(Team& team, const Layer& layer, const Frame& frame, int64_t span, int64_t head);
  void bring(const Layer& layer, const Frame& frame, const SpanPlan& span, int64_t head, LookupScratch& own);
  void copy_block(const Layer& layer, const Frame& frame, const SpanPlan& span, int64_t head, int64_t block,
                  int64_t place, int64_t shift);
  void commit(const Layer& layer, const Frame& frame, int64_t index, int64_t head) const;
  void run_one(Team& team, const std::vector<const Layer*>& layers, Frame& frame, const Norm* last);
  // These two do not meet at their end.
  void multiply_one(Team& team, Frame& frame, const float* x, const Norm* norm, const Linear& linear, float* out,
                    Finish finish = Finish::store, Activation activation = Activation::silu);
  void share_few(Team& team, const Product& product);
  // x += norm(branch) of a row, where a layer's output is normalised before it is added; `own` holds `dim` numbers.
  void add_branch(Frame& frame, const Norm& post, int64_t row, float* own);
  void prepare(Team& team, Frame& frame, const float* x, int64_t stride, const Norm* norm, const Linear& linear);
  void share_product(Team& team, const Product& product);
  // The feed-forward network of prepared rows.
  void share_feed_forward(Team& team, Frame& frame, const FeedForward& network, float* out, int64_t dim, Finish finish);
  void region(const std::function<void(Team&)>& body);

  Pool& pool_;
  const KernelTable& table_;
  Scratch scratch_;
  std::vector<LookupScratch> lookups_;  // Of each thread.
};

}  // namespace sash
