// Dynamic shared memory beyond the 48 KiB that every kernel may have.
#pragma once

#include <atomic>

#include "cuda/cuda_check.h"

namespace varattn {

// Lets `kKernel` be launched with `bytes` of it on the current device, whose index it returns. The limit is a device's own:
// it is set once for each, and `bytes` are the same in every call.
template <auto kKernel>
int allow_shared_memory(int bytes, const char* function) {
    static constexpr int kMaxDevices = 64;  // beyond, it is set at each launch
    static std::atomic<bool> allowed[kMaxDevices];
    int device = 0;
    check_cuda(cudaGetDevice(&device), function, "cudaGetDevice");
    if (device >= kMaxDevices || !allowed[device]) {
        const auto* kernel = reinterpret_cast<const void*>(kKernel);
        check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), function,
                   "cudaFuncSetAttribute");
        if (device < kMaxDevices) allowed[device] = true;
    }
    return device;
}

}  // namespace varattn
