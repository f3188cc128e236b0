// The body of an instance file.
#pragma once

#include <atomic>

#include "cuda/cuda_check.h"
#include "portable/kernel.cuh"
#include "portable/launch.h"

namespace varattn::portable {

template <class T, int kDim>
void launch_instance(const AttentionParams& params, cudaStream_t stream) {
    using C = Config<T, kDim>;
    constexpr int kBytes = sizeof(SharedMemory<C>);
    static_assert(kBytes <= 99 * 1024, "compute capability 8.6 has no more");
    static constexpr int kMaxDevices = 64;
    static std::atomic<bool> prepared[kMaxDevices];  // the shared memory limit is a device's, set once

    int device = 0;
    check_cuda(cudaGetDevice(&device), "mha_varlen", "cudaGetDevice");
    if (device >= kMaxDevices || !prepared[device]) {
        check_cuda(cudaFuncSetAttribute(attention_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
                   "mha_varlen", "cudaFuncSetAttribute");
        if (device < kMaxDevices) prepared[device] = true;
    }
    attention_kernel<C><<<params.config.num_ctas, kThreads, kBytes, stream>>>(params);
    check_cuda(cudaGetLastError(), "mha_varlen", "launch of the portable kernel");
}

}  // namespace varattn::portable
