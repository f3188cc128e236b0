// The body of an instance file.
#pragma once

#include "cuda/launch.h"
#include "sm90/kernel.cuh"

namespace varattn::sm90 {

template <class T, int kDim, bool kFoldsSegments>
void launch_instance(const LaunchParams& params, cudaStream_t stream) {
    using C = Config<T, kDim, kFoldsSegments>;
    constexpr int kSharedBytes = sizeof(SharedMemory<C>) + 1024;  // and room to align it
    static_assert(kSharedBytes <= 227 * 1024);
    const int num_ctas = params.a.config.num_ctas;
    // Not if SMs are to be left free: waiting CTAs would take them.
    const bool starts_early = num_ctas == current_device("mha_varlen").num_sms;
    launch_kernel<attention_kernel<C>>(params, {num_ctas, C::kThreads, kSharedBytes, starts_early}, stream,
                                       "mha_varlen");
}

}  // namespace varattn::sm90
