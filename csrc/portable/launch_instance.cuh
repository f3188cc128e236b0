// The body of an instance file.
#pragma once

#include "cuda/shared_memory.h"
#include "portable/kernel.cuh"
#include "portable/launch.h"

namespace varattn::portable {

template <class T, int kDim>
void launch_instance(const AttentionParams& params, cudaStream_t stream) {
    using C = Config<T, kDim>;
    constexpr int kBytes = sizeof(SharedMemory<C>);
    static_assert(kBytes <= 99 * 1024, "compute capability 8.6 has no more");
    allow_shared_memory<attention_kernel<C>>(kBytes, "mha_varlen");
    attention_kernel<C><<<params.config.num_ctas, kThreads, kBytes, stream>>>(params);
    check_cuda(cudaGetLastError(), "mha_varlen", "launch of the portable kernel");
}

}  // namespace varattn::portable
