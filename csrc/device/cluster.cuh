// A cluster: CTAs that run at the same time and write to each other's shared memory. Compute capability 9.0 and up; for older
// devices, every CTA is a cluster of its own.
#pragma once

#ifdef __CUDACC__  // tests/cpp/simt has these for a CPU

#include <cstring>

#include "device/barrier.cuh"

namespace varattn::device {

// All threads of the cluster arrive, at some time, and go on; what they await is that all have.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    mbarrier_init_fence();  // inboxes are what the others need
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Counts the bytes that other CTAs send to this one's shared memory: so many, once.
class Inbox {
public:
    // One thread, before its cluster_arrive().
    __device__ __forceinline__ void open(uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
        mbarrier_init(&barrier_, 1);
        mbarrier_arrive_expect_bytes(&barrier_, bytes);
#endif
    }
    // Writes `value` to where CTA `rank` has what is at `to` in this CTA, and counts it in that one's copy of this inbox.
    template <class T>
    __device__ __forceinline__ void send(T* to, T value, int rank) {
        static_assert(sizeof(T) == sizeof(uint4));
#if __CUDA_ARCH__ >= 900
        uint4 v;
        memcpy(&v, &value, sizeof v);
        asm volatile(
            "{ .reg .b32 to, inbox;\n"
            "mapa.shared::cluster.u32 to, %0, %2;\n"
            "mapa.shared::cluster.u32 inbox, %1, %2;\n"
            "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [to], {%3, %4, %5, %6}, [inbox]; }" ::"r"(
                smem_address(to)),
            "r"(smem_address(&barrier_)), "r"(rank), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
            : "memory");
#endif
    }
    // Until all are here.
    __device__ __forceinline__ void wait() {
#if __CUDA_ARCH__ >= 900
        mbarrier_wait(&barrier_, 0);
#endif
    }

private:
    uint64_t barrier_;
};

}  // namespace varattn::device

#endif
