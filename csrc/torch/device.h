// What the ops need of PyTorch's devices, without linking the CUDA half of PyTorch.
#pragma once

#include <cstdint>

#include "varattn/varattn.hpp"

namespace varattn::binding {

// The device that plans are made for.
Device device_at(bool is_cuda, int32_t index);

// PyTorch's current stream of a CUDA device.
cudaStream_t current_stream(int32_t device_index);

}  // namespace varattn::binding
