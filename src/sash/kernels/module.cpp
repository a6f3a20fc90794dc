// What Python sees: the module _sash_kernels.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "cpu.h"
#include "table.h"

namespace nb = nanobind;

NB_MODULE(_sash_kernels, module) {
  module.doc() = "Native kernels of Sash; sash.kernels checks what goes in.";
  module.def("isa", [] { return std::string(sash::isa_name(sash::best_isa())); });
  module.def("available_isas", [] {
    std::vector<std::string> names;
    for (sash::Isa isa : sash::available_isas()) names.emplace_back(sash::isa_name(isa));
    return names;
  });
}
