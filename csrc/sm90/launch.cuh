// Launch of one instance.
#pragma once

#include "cuda/shared_memory.h"
#include "sm90/kernel.cuh"

namespace varattn::sm90 {

template <class C>
void launch_instance(const LaunchParams& params, cudaStream_t stream) {
    constexpr int kSharedBytes = sizeof(SharedMemory<C>) + 1024;  // and room to align it
    static_assert(kSharedBytes <= 227 * 1024);
    const int device = allow_shared_memory<attention_kernel<C>>(kSharedBytes, "mha_varlen");
    const int num_ctas = params.a.config.num_ctas;
    // Unless SMs are to be left free: waiting CTAs would take them.
    int num_sms = 0;
    check_cuda(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device), "mha_varlen",
               "cudaDeviceGetAttribute");
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(num_ctas);
    config.blockDim = dim3(C::kThreads);
    config.dynamicSmemBytes = kSharedBytes;
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = num_ctas == num_sms ? 1 : 0;
    check_cuda(cudaLaunchKernelEx(&config, attention_kernel<C>, params), "mha_varlen", "launch");
}

// One a file (instance_*.cu), so that they compile side by side.
void launch_bf16_d64(const LaunchParams& params, cudaStream_t stream);
void launch_bf16_d128(const LaunchParams& params, cudaStream_t stream);
void launch_bf16_d256(const LaunchParams& params, cudaStream_t stream);
void launch_fp16_d64(const LaunchParams& params, cudaStream_t stream);
void launch_fp16_d128(const LaunchParams& params, cudaStream_t stream);
void launch_fp16_d256(const LaunchParams& params, cudaStream_t stream);

}  // namespace varattn::sm90
