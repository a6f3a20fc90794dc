// A step of one token. Its work between products is so little that each thread does all of it for itself: the stream
// between layers, the row that goes into a product. Then threads need not meet but after what they share.
#include <cstring>

#include "ahead.h"
#include "step_frame.h"

namespace sash {

void Stepper::share_few(Team& team, const Product& product) {
  const Shares shares(*product.linear, product.finish == Finish::gate ? 2 : 1, team.size());
  team.share_own(shares.units(), [&](int64_t unit) {
    shares.unit(
        unit,
        [&](int64_t tile, int64_t count, int64_t apart) { table_.multiply_runs(product, tile, count, apart); },
        [&](int64_t first, int64_t last) { table_.multiply(product, first, last, 0, product.n_rows); });
  });
}

void Stepper::multiply_one(Team& team, Frame& frame, const float* x, const Norm* norm, const Linear& linear, float* out,
                           Finish finish, Activation activation) {
  const Form form(linear);
  const Rows rows = Rows::in(frame.thread_rows[team.index()], form, 1);
  table_.prepare_row(x, norm, form, rows, 0, frame.thread_floats[team.index()]);
  share_few(team, {&linear, rows, 1, out, 0, finish, activation});
}

void Stepper::run_one(Team& team, const std::vector<const Layer*>& layers, Frame& frame, const Norm* last) {
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
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer* const layer = layers[i];
    const AttentionWeights& a = layer->attention;
    const FeedForward* const f = layer->has_feed_forward ? &layer->feed_forward : nullptr;
    const Linear* const next = i + 1 < layers.size() ? &layers[i + 1]->attention.wqkv : nullptr;
    const Ahead::Coming after_attention = f != nullptr ? Ahead::Coming{&f->w13, 2} : Ahead::Coming{next, 1};
    Ahead ahead(team, {{&a.wo, 1}, after_attention});
    multiply_one(team, frame, x, &layer->attention_norm, a.wqkv, frame.qkv);
    team.barrier([&] { return ahead.ask(); });
    attend(team, *layer, frame, ahead);
    multiply_one(team, frame, frame.attended, nullptr, a.wo, frame.branch);
    Ahead(team, {after_attention}).meet(team);
    take_branch(layer->attention_post_norm);
    if (f == nullptr) continue;
    multiply_one(team, frame, x, &layer->ffn_norm, f->w13, frame.hidden, Finish::gate, f->activation);
    Ahead(team, {{&f->w2, 1}, {next, 1}}).meet(team);
    multiply_one(team, frame, frame.hidden, nullptr, f->w2, frame.branch);
    Ahead(team, {{next, 1}}).meet(team);
    take_branch(layer->ffn_post_norm);
  }
  if (team.index() != 0) return;
  if (last != nullptr) table_.normalise(x, *last, frame.dim, x);
  std::memcpy(frame.x, x, static_cast<size_t>(frame.dim) * 4);
}

}  // namespace sash
