// Launches of kernels: shared memory beyond the 48 KiB that every kernel may have, and early starts.
#pragma once

#include <atomic>

#include "cuda/device_info.h"
#include "varattn/varattn.hpp"

namespace varattn {

struct LaunchShape {
    int num_ctas, num_threads, shared_bytes;
    // The kernel may start while the one before it on the stream runs out. It then has to wait for that one itself
    // (device::await_previous_kernel). Compute capability 9.0 and up.
    bool starts_early;
    bool is_cluster = false;  // All CTAs are one cluster. Compute capability 9.0 and up
};

// Lets `kKernel` be launched with `bytes` of dynamic shared memory on the current device. The limit is a device's own: it is
// set once for each, and `bytes` are the same in every call.
template <auto kKernel>
void allow_shared_memory(int bytes, const char* function) {
    static constexpr int kMaxDevices = 64;  // beyond, it is set at each launch
    static std::atomic<bool> allowed[kMaxDevices];
    const int device = current_device_index(function);
    if (device < kMaxDevices && allowed[device]) return;
    const auto* kernel = reinterpret_cast<const void*>(kKernel);
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), function,
               "cudaFuncSetAttribute");
    if (device < kMaxDevices) allowed[device] = true;
}

// Launches `kKernel` with its one argument. `function` is what errors name.
template <auto kKernel, class Params>
void launch_kernel(const Params& params, const LaunchShape& shape, cudaStream_t stream, const char* function) {
    allow_shared_memory<kKernel>(shape.shared_bytes, function);
    cudaLaunchAttribute attributes[2]{};
    cudaLaunchConfig_t config{};
    config.attrs = attributes;
    if (shape.starts_early) {
        cudaLaunchAttribute& early = attributes[config.numAttrs++];
        early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        early.val.programmaticStreamSerializationAllowed = 1;
    }
    if (shape.is_cluster) {
        cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim = {static_cast<unsigned>(shape.num_ctas), 1, 1};
    }
    config.gridDim = dim3(shape.num_ctas);
    config.blockDim = dim3(shape.num_threads);
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream;
    check_cuda(cudaLaunchKernelEx(&config, kKernel, params), function, "launch");
}

}  // namespace varattn
