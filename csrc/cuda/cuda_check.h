// CUDA errors as varattn::Error.
#pragma once

#include <cuda_runtime_api.h>  // declares cudaStream_t, as varattn.hpp does

#include <string>

#include "varattn/types.h"

namespace varattn {

inline void check_cuda(cudaError_t error, const char* function, const char* call) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // or the next launch of the process would report it
    throw Error(ErrorCode::kCuda, std::string(function) + ": " + call + ": got " + cudaGetErrorName(error) + " (" +
                                      cudaGetErrorString(error) + ")");
}

}  // namespace varattn
