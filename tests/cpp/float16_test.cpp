#include "cpu/float16.h"

#include <cmath>

#include "support.h"

namespace varattn {
namespace {

// The value of 16 bits with this many exponent and mantissa bits, by the definition of the formats.
double value_of(uint16_t bits, int exponent_bits, int mantissa_bits) {
    const int bias = (1 << (exponent_bits - 1)) - 1, exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
    const int mantissa = bits & ((1 << mantissa_bits) - 1);
    const double sign = bits & 0x8000 ? -1.0 : 1.0;
    if (exponent == (1 << exponent_bits) - 1) return mantissa ? std::nan("") : sign * HUGE_VAL;
    const double significand =
        exponent ? 1.0 + std::ldexp(mantissa, -mantissa_bits) : std::ldexp(mantissa, -mantissa_bits);
    return sign * std::ldexp(significand, std::max(exponent, 1) - bias);
}

template <class T>
void check_all_values(int exponent_bits, int mantissa_bits) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const T x{static_cast<uint16_t>(bits)};
        const double expected = value_of(x.bits, exponent_bits, mantissa_bits);
        const float got = to_float(x);
        if (std::isnan(expected)) {
            ASSERT_TRUE(std::isnan(got)) << bits;
            ASSERT_TRUE(std::isnan(to_float(from_float<T>(got)))) << bits;
            continue;
        }
        ASSERT_EQ(got, expected) << bits;
        ASSERT_EQ(std::signbit(got), std::signbit(expected)) << bits;
        ASSERT_EQ(from_float<T>(got).bits, bits);
        // Between this value and the next larger in magnitude: the nearer one, or the even one in the middle.
        const T next{static_cast<uint16_t>(bits + 1)};
        const double after = value_of(next.bits, exponent_bits, mantissa_bits);
        if (std::isnan(after) || std::isinf(expected)) continue;
        const double step =
            std::isinf(after) ? expected - value_of(bits - 1, exponent_bits, mantissa_bits) : after - expected;
        const auto middle = static_cast<float>(expected + step / 2);
        ASSERT_EQ(from_float<T>(middle).bits, bits % 2 ? next.bits : x.bits) << bits;
        ASSERT_EQ(from_float<T>(std::nextafterf(middle, 0.0f)).bits, x.bits) << bits;
        ASSERT_EQ(from_float<T>(std::nextafterf(middle, std::signbit(middle) ? -HUGE_VALF : HUGE_VALF)).bits, next.bits)
            << bits;
    }
}

TEST(Float16, HalfEveryValueAndMidpoint) { check_all_values<Half>(5, 10); }
TEST(Float16, BFloat16EveryValueAndMidpoint) { check_all_values<BFloat16>(8, 7); }

TEST(Float16, HugeFloatsOverflowToInfinity) {
    EXPECT_EQ(from_float<Half>(1e30f).bits, 0x7c00);
    EXPECT_EQ(from_float<Half>(-1e30f).bits, 0xfc00);
    EXPECT_EQ(from_float<Half>(1e-30f).bits, 0);
}

}  // namespace
}  // namespace varattn
