// Launch of one instance.
#pragma once

#include "cuda/launch.h"
#include "sm90/kernel.cuh"

namespace varattn::sm90 {

template <class C>
void launch_instance(const LaunchParams& params, cudaStream_t stream) {
    constexpr int kSharedBytes = sizeof(SharedMemory<C>) + 1024;  // and room to align it
    static_assert(kSharedBytes <= 227 * 1024);
    const int num_ctas = params.a.config.num_ctas;
    // Not if SMs are to be left free: waiting CTAs would take them.
    const bool starts_early = num_ctas == current_device("mha_varlen").num_sms;
    launch_kernel<attention_kernel<C>>(params, {num_ctas, C::kThreads, kSharedBytes, starts_early}, stream,
                                       "mha_varlen");
}

// One a file (instance_*.cu), so that they compile side by side.
void launch_bf16_d64(const LaunchParams& params, cudaStream_t stream);
void launch_bf16_d128(const LaunchParams& params, cudaStream_t stream);
void launch_bf16_d256(const LaunchParams& params, cudaStream_t stream);
void launch_fp16_d64(const LaunchParams& params, cudaStream_t stream);
void launch_fp16_d128(const LaunchParams& params, cudaStream_t stream);
void launch_fp16_d256(const LaunchParams& params, cudaStream_t stream);

}  // namespace varattn::sm90
