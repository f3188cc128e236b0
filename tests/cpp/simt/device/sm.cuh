// csrc/device/sm.cuh for a CPU: every block has an SM.
#pragma once

#include "simt/simt.h"

namespace varattn::device {

inline uint32_t sm_id() { return blockIdx.x; }
inline uint32_t num_sm_ids() { return gridDim.x; }

}  // namespace varattn::device
