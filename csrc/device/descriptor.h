// Shared-memory descriptors of WGMMA operands.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace varattn::device {

// Of an operand in 128-byte-swizzled lines. K-major operand: `stride` is the bytes between groups of 8 rows. MN-major operand:
// `stride` is the bytes between groups of 8 along K, `leading` those between groups of 64 elements along M or N.
VARATTN_HD constexpr uint64_t swizzle128_descriptor(uint32_t address, uint32_t stride, uint32_t leading = 16) {
    return static_cast<uint64_t>((address >> 4) | leading >> 4 << 16) | static_cast<uint64_t>(stride >> 4 | 1u << 30)
                                                                            << 32;
}
// Of the same kind, elsewhere: of one at address 0.
VARATTN_HD constexpr uint64_t descriptor_at(uint64_t descriptor, uint32_t address) { return descriptor | address >> 4; }
// By units of 16 bytes.
VARATTN_HD constexpr uint64_t advance(uint64_t descriptor, uint32_t by) { return descriptor + by; }

}  // namespace varattn::device
