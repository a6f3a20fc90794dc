// Parts of the module _sash_kernels that stand in files of their own.
#pragma once

#include <nanobind/nanobind.h>

namespace sash {

// limits.cpp: what this machine can do at most.
void bind_limits(nanobind::module_& module);

}  // namespace sash
