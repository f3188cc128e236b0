// Accesses to global memory that the language has no words for.
#pragma once

#include <cuda/atomic>

#include <cstdint>

namespace varattn::device {

__device__ __forceinline__ void prefetch_l1(const void* from) {
    asm volatile("prefetch.global.L1 [%0];" ::"l"(from) : "memory");
}

// 8 bytes in one store, without a branch.
__device__ __forceinline__ void store_global_if(bool condition, void* to, uint32_t x, uint32_t y) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.v2.b32 [%1], {%2, %3}; }" ::"r"(
                     static_cast<int>(condition)),
                 "l"(to), "r"(x), "r"(y)
                 : "memory");
}

// Counts an arrival, and returns how many came before. It releases what this thread has written, or seen at a barrier, and
// acquires what those had.
__device__ __forceinline__ uint32_t arrive_at(uint32_t& count) {
    return cuda::atomic_ref<uint32_t, cuda::thread_scope_device>(count).fetch_add(1, cuda::memory_order_acq_rel);
}

}  // namespace varattn::device
