// A step of one token. Its work between products is so little that each thread does all of it for itself: the stream
// between layers, the row that goes into a product. Then threads need not meet but after what they share.
#include <algorithm>
#include <cstring>

#include "step_frame.h"

namespace sash {

// Parts of nearly equal size, so that none is left over at the end. Tiles of a gated pair stay together.
void Stepper::share_few(Team& team, const Product& product) {
  const int64_t whole = product.finish == Finish::gate ? 2 : 1;
  const int64_t tiles = ceil_div(product.linear->tiles(), whole), bytes = tiles * whole * product.linear->tile_bytes();
  const int64_t fair = std::max<int64_t>(4, ceil_div(bytes, kClaimBytes * team.size())) * team.size();
  const int64_t parts = std::min(team.size() == 1 ? 1 : fair, tiles);
  team.share(parts, [&](int64_t part) {
    const int64_t first = part * tiles / parts * whole, last = (part + 1) * tiles / parts * whole;
    table_.multiply(product, first, std::min(last, product.linear->tiles()), 0, product.n_rows);
  });
}

void Stepper::multiply_one(Team& team, Frame& frame, const float* x, const Norm* norm, const Linear& linear, float* out,
                           Finish finish, Activation activation) {
  const Form form(linear);
  const Rows rows = Rows::in(frame.thread_rows[team.index()], form, 1);
  table_.prepare_row(x, norm, form, rows, 0, frame.thread_floats[team.index()]);
  share_few(team, {&linear, rows, 1, out, 0, finish, activation});
}

void Stepper::run_one(Team& team, const std::vector<const Layer*>& layers, Frame& frame) {
  float* const x = frame.thread_streams[team.index()];
  float* const normed = frame.thread_floats[team.index()];
  std::memcpy(x, frame.x, static_cast<size_t>(frame.dim) * 4);
  const auto take_branch = [&](const Norm& post) {
    const float* from = frame.branch;
    if (post.weight != nullptr) {
      table_.normalise(from, post, frame.dim, normed);
      from = normed;
    }
    for (int64_t i = 0; i < frame.dim; ++i) x[i] += from[i];
  };
  for (const Layer* layer : layers) {
    const AttentionWeights& a = layer->attention;
    multiply_one(team, frame, x, &layer->attention_norm, a.wqkv, frame.qkv);
    attend(team, *layer, frame);
    multiply_one(team, frame, frame.attended, nullptr, a.wo, frame.branch);
    take_branch(layer->attention_post_norm);
    if (!layer->has_feed_forward) continue;
    const FeedForward& f = layer->feed_forward;
    multiply_one(team, frame, x, &layer->ffn_norm, f.w13, frame.hidden, Finish::gate, f.activation);
    multiply_one(team, frame, frame.hidden, nullptr, f.w2, frame.branch);
    take_branch(layer->ffn_post_norm);
  }
  if (team.index() == 0) std::memcpy(frame.x, x, static_cast<size_t>(frame.dim) * 4);
}

}  // namespace sash
