// The optional trace of a call: records of what an SM did, and when.
#pragma once

#include <cstdint>

#include "varattn/params.h"
#include "varattn/trace.h"

namespace varattn::device {

// A clock that all SMs share.
__device__ __forceinline__ uint64_t now_ns() {
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

// By one thread, of something that ends now. For launches with a trace.
__device__ __forceinline__ void record(const AttentionParams& p, uint32_t item, uint32_t head_kv, TraceKind kind,
                                       uint64_t begin_ns) {
    auto* header = static_cast<TraceHeader*>(p.trace);
    const auto slot = atomicAdd(reinterpret_cast<unsigned long long*>(&header->count), 1ull);
    if (slot >= static_cast<unsigned long long>(p.trace_capacity)) return;
    uint32_t sm;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
    reinterpret_cast<TraceRecord*>(header + 1)[slot] = {static_cast<uint64_t>(item) << 32 | head_kv,
                                                        uint64_t{sm} << 32 | kind, begin_ns, now_ns()};
}

}  // namespace varattn::device
