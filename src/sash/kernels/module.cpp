// What Python sees: the module _sash_kernels. Addresses and sizes come in as integers; sash.kernels has checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu.h"
#include "module.h"
#include "step.h"
#include "table.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace sash;

const KernelTable& table_of(Isa isa) {
  switch (isa) {
#ifdef SASH_HAVE_AMX
    case Isa::amx: return amx::table();
#endif
#ifdef SASH_HAVE_AVX512
    case Isa::avx512: return avx512::table();
#endif
#ifdef SASH_HAVE_AVX2
    case Isa::avx2: return avx2::table();
#endif
    case Isa::portable: return portable::table();
    default: throw std::invalid_argument("no native kernels serve: SASH_ISA is 'none'");
  }
}

// The instruction set is chosen once, on first use.
Stepper& stepper() {
  static Stepper* shared = new Stepper(Pool::shared(), table_of(best_isa()));
  return *shared;
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Linear linear_of(int kind, int64_t n, int64_t k, uintptr_t data, uintptr_t scale, uintptr_t minimum,
                 uintptr_t multiplier, int64_t group, int64_t rotation, uintptr_t bias) {
  Linear linear{static_cast<Kind>(kind), n, k, at<const void>(data)};
  const bool by_output = linear.kind == Kind::int8 || multiplier != 0;
  if (by_output) linear.scale8 = at<const float>(scale);
  if (linear.kind == Kind::int4 && !by_output) linear.scale4 = at<const uint16_t>(scale);
  linear.minimum = at<const uint16_t>(minimum);
  linear.multiplier = at<const int8_t>(multiplier);
  linear.group = group;
  linear.rotation = rotation;
  linear.bias = at<const float>(bias);
  return linear;
}

Norm norm_of(uintptr_t weight, float eps) { return Norm{at<const float>(weight), eps}; }

Slots slots_of(uintptr_t keys, uintptr_t values, int64_t layer_stride, int64_t head_stride, int64_t token_stride,
               uintptr_t key_scales, uintptr_t value_scales, int64_t scale_layer_stride, int64_t scale_head_stride) {
  return Slots{at<char>(keys),        at<char>(values),        layer_stride,       head_stride,
               token_stride,          at<float>(key_scales),   at<float>(value_scales), scale_layer_stride,
               scale_head_stride};
}

void bind_weights(nb::module_& module) {
  nb::class_<Linear>(module, "Linear").def(nb::new_([](int kind, int64_t n, int64_t k, uintptr_t data, uintptr_t scale,
                                                       uintptr_t minimum, uintptr_t multiplier, int64_t group,
                                                       int64_t rotation, uintptr_t bias) {
    return new Linear(linear_of(kind, n, k, data, scale, minimum, multiplier, group, rotation, bias));
  }));
  nb::class_<Norm>(module, "Norm").def(nb::new_([](uintptr_t weight, float eps) { return new Norm(norm_of(weight, eps)); }));
  nb::class_<FeedForward>(module, "FeedForward")
      .def(nb::new_([](const Linear& w13, const Linear& w2, int activation) {
        return new FeedForward{w13, w2, static_cast<Activation>(activation)};
      }));
  nb::class_<AttentionWeights>(module, "AttentionWeights")
      .def(nb::new_([](const Linear& wqkv, const Linear& wo, int64_t n_heads, int64_t n_kv_heads, int64_t head_dim,
                       float scale, const Norm& q_norm, const Norm& k_norm, bool interleaved, int64_t kind,
                       int64_t layer_in_store) {
        return new AttentionWeights{wqkv,   wo,     n_heads,     n_kv_heads, head_dim,      scale,
                                    q_norm, k_norm, interleaved, kind,       layer_in_store};
      }));
  nb::class_<Layer>(module, "Layer")
      .def(nb::new_([](const AttentionWeights& attention, const Norm& attention_norm, const Norm& attention_post_norm,
                       const Norm& ffn_norm, const Norm& ffn_post_norm) {
        return new Layer{attention, attention_norm, attention_post_norm, ffn_norm, ffn_post_norm, false, {}};
      }))
      .def("set_feed_forward", [](Layer& layer, const FeedForward& network) {
        layer.feed_forward = network;
        layer.has_feed_forward = true;
      });
}

void bind_plan(nb::module_& module) {
  nb::class_<Plan>(module, "Plan")
      .def(nb::new_([](int64_t n_tokens, bool int8_kv, int64_t mixing) {
        return new Plan{n_tokens, int8_kv, mixing, {}};
      }))
      .def("add_kind",
           [](Plan& plan, int64_t window, uintptr_t cos, uintptr_t sin, uintptr_t clamped_cos, uintptr_t clamped_sin) {
             plan.kinds.push_back({window, at<const float>(cos), at<const float>(sin), at<const float>(clamped_cos),
                                   at<const float>(clamped_sin), {}});
           })
      .def("export_queries",
           [](Plan& plan, uintptr_t queries, int64_t exported) {
             plan.kinds.back().queries = at<uint16_t>(queries);
             plan.kinds.back().exported = exported;
           })
      .def("add_span", [](Plan& plan, int64_t start, int64_t count, int64_t position) {
        plan.kinds.back().spans.push_back({start, count, position, {}, {}, {}, nullptr});
      })
      .def("add_own_pins", [](Plan& plan, int64_t first, int64_t count) {
        plan.kinds.back().spans.back().pins.push_back({first, count});
      })
      .def("add_held",
           [](Plan& plan, int64_t first_position, int64_t count, bool pinned, uintptr_t keys, uintptr_t values,
              int64_t layer_stride, int64_t head_stride, int64_t token_stride, uintptr_t key_scales,
              uintptr_t value_scales, int64_t scale_layer_stride, int64_t scale_head_stride) {
             plan.kinds.back().spans.back().held.push_back(
                 {first_position, count, pinned ? Sight::pinned : Sight::window,
                  slots_of(keys, values, layer_stride, head_stride, token_stride, key_scales, value_scales,
                           scale_layer_stride, scale_head_stride)});
           })
      .def("add_annex",
           [](Plan& plan, int64_t count, uintptr_t log_weights, uintptr_t keys, uintptr_t values, int64_t layer_stride,
              int64_t head_stride, int64_t token_stride, uintptr_t key_scales, uintptr_t value_scales,
              int64_t scale_layer_stride, int64_t scale_head_stride) {
             plan.kinds.back().spans.back().held.push_back(
                 {0, count, Sight::annex,
                  slots_of(keys, values, layer_stride, head_stride, token_stride, key_scales, value_scales,
                           scale_layer_stride, scale_head_stride),
                  at<const float>(log_weights)});
           })
      .def("add_lookup",
           [](Plan& plan, const std::vector<int64_t>& sizes, bool whole, const std::vector<int64_t>& left_out,
              int64_t n_stretches, uintptr_t table, uintptr_t tags, uintptr_t candidates, uintptr_t shared, int64_t length,
              uintptr_t limits, uintptr_t strides, uintptr_t frequencies) {
             KindPlan& kind = plan.kinds.back();
             kind.spans.back().lookup = std::make_shared<const Lookup>(
                 Lookup{stretches_of(at<const int64_t>(table), n_stretches), sizes.at(0), sizes.at(1), sizes.at(2),
                        sizes.at(3), sizes.at(4), sizes.at(5), whole, left_out, at<int64_t>(tags),
                        at<int64_t>(candidates), at<const int64_t>(shared), length,
                        at<const int64_t>(limits), at<const int64_t>(strides), at<const double* const>(frequencies)});
             kind.looks_up = true;
           })
      .def("add_write", [](Plan& plan, int64_t token, int64_t count, uintptr_t keys, uintptr_t values,
                           int64_t layer_stride, int64_t head_stride, int64_t token_stride, uintptr_t key_scales,
                           uintptr_t value_scales, int64_t scale_layer_stride, int64_t scale_head_stride) {
        plan.kinds.back().spans.back().writes.push_back(
            {token, count, slots_of(keys, values, layer_stride, head_stride, token_stride, key_scales, value_scales,
                                    scale_layer_stride, scale_head_stride)});
      });
}

void bind_work(nb::module_& module) {
  module.def(
      "run",
      [](const std::vector<const Layer*>& layers, const Plan& plan, uintptr_t x, int64_t dim, const Norm& last) {
        stepper().run(layers, plan, at<float>(x), dim, last.weight == nullptr ? nullptr : &last);
      },
      nb::call_guard<nb::gil_scoped_release>());
  module.def(
      "rows",
      [](const Linear& linear, uintptr_t rows, int64_t count, float factor, uintptr_t out) {
        for (int64_t i = 0; i < count; ++i)
          if (at<const int64_t>(rows)[i] < 0 || at<const int64_t>(rows)[i] >= linear.n)
            throw nb::index_error("a row that the weight does not have");
        stepper().unpack(linear, at<const int64_t>(rows), count, factor, at<float>(out));
      },
      nb::call_guard<nb::gil_scoped_release>());
  module.def(
      "multiply",
      [](const Linear& linear, uintptr_t x, int64_t x_stride, int64_t n_rows, uintptr_t out, int64_t out_stride) {
        stepper().multiply(linear, at<const float>(x), x_stride, n_rows, at<float>(out), out_stride, nullptr);
      },
      nb::call_guard<nb::gil_scoped_release>());
  module.def(
      "feed",
      [](const FeedForward& network, uintptr_t x, int64_t n_rows, uintptr_t out, int64_t dim) {
        stepper().feed(network, at<const float>(x), n_rows, at<float>(out), dim);
      },
      nb::call_guard<nb::gil_scoped_release>());
  module.def(
      "pack",
      [](uintptr_t x, int64_t n_rows, int64_t k, int64_t rotation, uintptr_t data, uintptr_t scale) {
        stepper().pack(at<const float>(x), n_rows, k, rotation, at<char>(data), at<float>(scale));
      },
      nb::call_guard<nb::gil_scoped_release>());
  module.def("block_row_bytes", [](int kind, int64_t k) { return StoredRows{static_cast<Stored>(kind), nullptr, 0, k}.row_bytes(); });
  module.def(
      "pack_blocks",
      [](int kind, uintptr_t rows, int64_t n_rows, int64_t k, int64_t rotation, uintptr_t data, uintptr_t scale8,
         uintptr_t scale4, uintptr_t minimum, int64_t step) {
        return stepper().pack_blocks({static_cast<Stored>(kind), at<const uint8_t>(rows), n_rows, k}, rotation,
                                     {at<char>(data), at<float>(scale8), at<uint16_t>(scale4), at<uint16_t>(minimum), step});
      },
      nb::call_guard<nb::gil_scoped_release>());
  module.def(
      "rank",
      [](uintptr_t queries, const std::vector<int64_t>& sizes, float scale, const std::vector<int64_t>& left_out,
         int64_t n_stretches, uintptr_t table, uintptr_t out) {
        const Ranking ranking{at<const uint16_t>(queries), sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3),
                              sizes.at(4),                 sizes.at(5), sizes.at(6), sizes.at(7), sizes.at(8),
                              sizes.at(9),                 scale,       left_out};
        const std::vector<RankedStretch> stretches = stretches_of(at<const int64_t>(table), n_stretches);
        const int64_t n_blocks = stretches.empty() ? 0 : stretches.back().first + stretches.back().n_blocks;
        stepper().rank(ranking, stretches, n_blocks, at<int64_t>(out));
      },
      nb::call_guard<nb::gil_scoped_release>());
  module.def(
      "copy_runs",
      [](uintptr_t from, uintptr_t to, int64_t count, int64_t bytes) {
        for (int64_t i = 0; i < count; ++i)
          std::memcpy(at<char>(at<uintptr_t>(to)[i]), at<char>(at<uintptr_t>(from)[i]), static_cast<size_t>(bytes));
      },
      nb::call_guard<nb::gil_scoped_release>());
  module.def(
      "normalise",
      [](uintptr_t x, const Norm& norm, int64_t n_rows, int64_t k, uintptr_t out) {
        stepper().normalise(at<const float>(x), norm, n_rows, k, at<float>(out));
      },
      nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace

NB_MODULE(_sash_kernels, module) {
  nb::set_leak_warnings(false);  // A model that lives until the process ends is no mistake.
  module.doc() = "Native kernels of Sash; sash.kernels checks what goes in.";
  module.def("isa", [] { return std::string(isa_name(best_isa())); });
  module.def("available_isas", [] {
    std::vector<std::string> names;
    for (Isa isa : available_isas()) names.emplace_back(isa_name(isa));
    return names;
  });
  module.def("threads", [] { return Pool::shared().size(); });
  module.def("set_threads", [](int count) { Pool::shared().resize(count); });
  bind_weights(module);
  bind_plan(module);
  bind_work(module);
  bind_limits(module);
}
