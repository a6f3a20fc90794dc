// What the phases of a step work on.
#pragma once

#include <vector>

#include "step.h"

namespace sash {

// A unit of attention: rows [first, last) of one key/value head of one span.
struct AttentionUnit {
  const SpanPlan* span;
  int64_t head, first, last;
};

struct Stepper::Frame {
  const Plan* plan;
  int64_t n_tokens, dim;
  float* x;
  char* rows;           // Prepared activations of the product at hand.
  float* qkv;           // [tokens][heads * head_dim, twice key/value heads * head_dim]
  int64_t qkv_stride;
  uint16_t *q, *clamped_q;  // [key/value head][token][heads of the group][head_dim]
  char *keys, *values;      // [key/value head][token][head_dim], as the cache holds them
  float *key_scales, *value_scales;
  float* attended;          // [tokens][heads * head_dim]
  float* hidden;            // [tokens][hidden_dim]: gated, where the next product takes integers, or for one token
  char* hidden_rows;        // The same as prepared rows, where it takes bfloat16.
  float* branch;            // [tokens][dim]: what a post norm waits for
  const Norm* pending = nullptr;  // The post norm that `branch` still needs before it is added to x.
  std::vector<float*> thread_floats;
  std::vector<float*> thread_streams;  // Of a step of one token: x, and its prepared row, for each thread.
  std::vector<char*> thread_rows;
  std::vector<char*> thread_attention;
  std::vector<std::vector<AttentionUnit>> units;  // A kind.

  // Points all of the above into scratch memory that is large enough for any of the layers.
  void lay_out(const std::vector<const Layer*>& layers, const KernelTable& table, int n_threads, Scratch& scratch);

  // Cuts the attention of each kind of layer into units.
  void share_attention(const std::vector<const Layer*>& layers, int n_threads);
};

}  // namespace sash
