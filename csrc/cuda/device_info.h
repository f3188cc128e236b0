// What the host knows of CUDA devices, asked once.
#pragma once

#include <string>

#include "cuda/cuda_check.h"
#include "varattn/types.h"

namespace varattn {

inline int current_device_index(const char* function) {
    int device = 0;
    check_cuda(cudaGetDevice(&device), function, "cudaGetDevice");
    return device;
}
inline Device current_device(const char* function) { return cuda_device(current_device_index(function)); }

// As in "NVIDIA H200".
const std::string& cuda_device_name(int32_t device_index);

}  // namespace varattn
