// Position in a ring of stages: which stage, and the parity of its barriers in this round.
#pragma once

#include <cstdint>

namespace varattn::device {

template <int kStages>
struct RingPosition {
    int stage = 0;
    uint32_t round = 0;  // parity of the round

    __device__ __forceinline__ void advance() {
        if (++stage == kStages) {
            stage = 0;
            round ^= 1;
        }
    }
    __device__ __forceinline__ void advance(int n) {
        const uint32_t at = stage + n;
        stage = at % kStages;
        round ^= at / kStages & 1;
    }
    __device__ __forceinline__ RingPosition next() const {
        RingPosition after = *this;
        after.advance();
        return after;
    }
    // Parity to wait for on a full barrier (this round's fill), and on an empty one (the last round's release).
    __device__ __forceinline__ uint32_t full_parity() const { return round; }
    __device__ __forceinline__ uint32_t empty_parity() const { return round ^ 1; }
};

}  // namespace varattn::device
