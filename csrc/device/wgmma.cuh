// Warpgroup matrix products (WGMMA) for 16-bit operands with float32 accumulators.
//
// Accumulator of a 64 x N tile, thread t of the warpgroup: element i is row (t / 32) * 16 + t % 32 / 4 + (i / 2 % 2) * 8,
// column (i / 4) * 8 + t % 4 * 2 + i % 2. The same layout, packed in pairs, is an A operand in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "device/descriptor.h"

namespace varattn::device {

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of registers that a WGMMA in flight reads or writes across this point.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&r)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
        asm volatile("" : "+f"(r[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin_registers(uint32_t (&r)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
        asm volatile("" : "+r"(r[i])::"memory");
}

#define VARATTN_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define VARATTN_D16(i) VARATTN_D4(i), VARATTN_D4(i + 4), VARATTN_D4(i + 8), VARATTN_D4(i + 12)
#define VARATTN_R16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define VARATTN_R32 VARATTN_R16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define VARATTN_R64                                                                         \
    VARATTN_R32                                                                             \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52," \
    "%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define VARATTN_WGMMA_SS(n, type, regs, a, b, acc)                                                            \
    "{ .reg .pred p; setp.ne.b32 p, " acc ", 0; wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type \
    " {" regs "}, " a ", " b ", p, 1, 1, 0, 0; }"
#define VARATTN_WGMMA_RS(n, type, regs, a, b, acc)                                                            \
    "{ .reg .pred p; setp.ne.b32 p, " acc ", 0; wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type \
    " {" regs "}, {" a "}, " b ", p, 1, 1, 1; }"

// d (64 x N) = a (64 x 16, shared, K-major) * b (16 x N, shared, K-major) [+ d]. N is twice the registers of d.
template <class T, int kRegs>
__device__ __forceinline__ void wgmma_ss(float (&d)[kRegs], uint64_t a, uint64_t b, int accumulate) {
    static_assert(kRegs == 32 || kRegs == 64);
    if constexpr (kRegs == 64 && std::is_same_v<T, __nv_bfloat16>)
        asm volatile(VARATTN_WGMMA_SS("128", "bf16", VARATTN_R64, "%64", "%65", "%66")
                     : VARATTN_D16(0), VARATTN_D16(16), VARATTN_D16(32), VARATTN_D16(48)
                     : "l"(a), "l"(b), "r"(accumulate));
    else if constexpr (kRegs == 64)
        asm volatile(VARATTN_WGMMA_SS("128", "f16", VARATTN_R64, "%64", "%65", "%66")
                     : VARATTN_D16(0), VARATTN_D16(16), VARATTN_D16(32), VARATTN_D16(48)
                     : "l"(a), "l"(b), "r"(accumulate));
    else if constexpr (std::is_same_v<T, __nv_bfloat16>)
        asm volatile(VARATTN_WGMMA_SS("64", "bf16", VARATTN_R32, "%32", "%33", "%34")
                     : VARATTN_D16(0), VARATTN_D16(16)
                     : "l"(a), "l"(b), "r"(accumulate));
    else
        asm volatile(VARATTN_WGMMA_SS("64", "f16", VARATTN_R32, "%32", "%33", "%34")
                     : VARATTN_D16(0), VARATTN_D16(16)
                     : "l"(a), "l"(b), "r"(accumulate));
}

// d (64 x N) = a (64 x 16, registers) * b (16 x N, shared, MN-major) [+ d].
template <class T, int kRegs>
__device__ __forceinline__ void wgmma_rs(float (&d)[kRegs], const uint32_t* a, uint64_t b, int accumulate) {
    static_assert(kRegs == 32 || kRegs == 64);
    if constexpr (kRegs == 64 && std::is_same_v<T, __nv_bfloat16>)
        asm volatile(VARATTN_WGMMA_RS("128", "bf16", VARATTN_R64, "%64,%65,%66,%67", "%68", "%69")
                     : VARATTN_D16(0), VARATTN_D16(16), VARATTN_D16(32), VARATTN_D16(48)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
    else if constexpr (kRegs == 64)
        asm volatile(VARATTN_WGMMA_RS("128", "f16", VARATTN_R64, "%64,%65,%66,%67", "%68", "%69")
                     : VARATTN_D16(0), VARATTN_D16(16), VARATTN_D16(32), VARATTN_D16(48)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
    else if constexpr (std::is_same_v<T, __nv_bfloat16>)
        asm volatile(VARATTN_WGMMA_RS("64", "bf16", VARATTN_R32, "%32,%33,%34,%35", "%36", "%37")
                     : VARATTN_D16(0), VARATTN_D16(16)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
    else
        asm volatile(VARATTN_WGMMA_RS("64", "f16", VARATTN_R32, "%32,%33,%34,%35", "%36", "%37")
                     : VARATTN_D16(0), VARATTN_D16(16)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

#undef VARATTN_D4
#undef VARATTN_D16
#undef VARATTN_R16
#undef VARATTN_R32
#undef VARATTN_R64
#undef VARATTN_WGMMA_SS
#undef VARATTN_WGMMA_RS

}  // namespace varattn::device
