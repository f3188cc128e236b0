// The body of an instance file.
#pragma once

#include "cuda/launch.h"
#include "portable/kernel.cuh"
#include "portable/launch.h"

namespace varattn::portable {

template <class T, int kDim>
void launch_instance(const AttentionParams& params, cudaStream_t stream) {
    using C = Config<T, kDim>;
    constexpr int kBytes = sizeof(SharedMemory<C>);
    static_assert(kBytes <= 99 * 1024, "compute capability 8.6 has no more");
    launch_kernel<attention_kernel<C>>(params, {params.config.num_ctas, kThreads, kBytes, false}, stream, "mha_varlen");
}

}  // namespace varattn::portable
