// Which SM a thread runs on.
#pragma once

#include <cstdint>

namespace varattn::device {

__device__ __forceinline__ uint32_t sm_id() {
    uint32_t id;
    asm("mov.u32 %0, %%smid;" : "=r"(id));
    return id;
}
// More than any SM's id.
__device__ __forceinline__ uint32_t num_sm_ids() {
    uint32_t num;
    asm("mov.u32 %0, %%nsmid;" : "=r"(num));
    return num;
}

}  // namespace varattn::device
