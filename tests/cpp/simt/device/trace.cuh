// csrc/device/trace.cuh for a CPU: there are no traces.
#pragma once

#include "varattn/params.h"
#include "varattn/trace.h"

namespace varattn::device {

inline uint64_t now_ns() { return 0; }
inline void record(const AttentionParams&, uint32_t, uint32_t, TraceKind, uint64_t) {}

}  // namespace varattn::device
