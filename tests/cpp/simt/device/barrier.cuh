// csrc/device/barrier.cuh for a CPU.
#pragma once

#include <unordered_map>

#include "simt/simt.h"

namespace varattn::device {

// Shared memory begins here, as threads see it: not at 0, and not where a swizzled line would.
inline constexpr uint32_t kSharedBase = 16;

inline uint32_t smem_address(const void* p) {
    const auto& cluster = *simt::Cluster::current_cluster;
    return static_cast<uint32_t>(static_cast<const char*>(p) - cluster.shared(cluster.block())) + kSharedBase;
}
inline char* at_shared(uint32_t address) {
    const auto& cluster = *simt::Cluster::current_cluster;
    return cluster.shared(cluster.block()) + (int64_t{address} - kSharedBase);
}

inline uint32_t warp_uniform(uint32_t x, int lane = 0) { return __shfl_sync(~0u, x, lane); }
inline int lane_id() { return threadIdx.x % 32; }
inline bool elect_one() { return lane_id() == 0; }

struct Mbarrier {
    uint32_t count;
    int64_t arrivals, bytes = 0;  // that the phase still waits for
    uint32_t parity = 0;          // of the phase
    bool is_complete(uint32_t of_parity) const { return parity != of_parity; }
    void update(int64_t arrived, int64_t more_bytes) {
        arrivals -= arrived;
        bytes += more_bytes;
        if (arrivals < 0) throw std::runtime_error("more arrivals at an mbarrier than its phase takes");
        if (arrivals > 0 || bytes != 0) return;
        arrivals = count;
        parity ^= 1;
    }
};
inline std::unordered_map<const void*, Mbarrier> mbarriers;

inline void mbarrier_init(uint64_t* bar, uint32_t arrivals) { mbarriers[bar] = {arrivals, arrivals}; }
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint64_t* bar, uint32_t count = 1) { mbarriers.at(bar).update(count, 0); }
inline void mbarrier_arrive_expect_bytes(uint64_t* bar, uint32_t bytes) { mbarriers.at(bar).update(1, bytes); }
inline bool mbarrier_test(uint64_t* bar, uint32_t parity) { return mbarriers.at(bar).is_complete(parity); }
inline void mbarrier_wait(uint64_t* bar, uint32_t parity) {
    const Mbarrier& it = mbarriers.at(bar);
    if (!it.is_complete(parity))
        simt::Cluster::current_cluster->wait_until([&it, parity] { return it.is_complete(parity); });
}

inline void fence_async_proxy() {}
inline void allow_next_kernel() {}
inline void await_previous_kernel() {}
template <int kRegisters>
void lower_register_limit() {}
template <int kRegisters>
void raise_register_limit() {}

}  // namespace varattn::device
