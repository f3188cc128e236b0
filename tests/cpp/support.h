// Random numbers with printed seeds, and buffers of plans, for all tests.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/costs.h"
#include "core/host_planner.h"
#include "varattn/varattn.hpp"

namespace varattn::test {

// Fresh in every process, unless VARATTN_SEED sets it. Case i of a test uses seed + i.
inline uint64_t first_seed() {
    static const uint64_t seed = [] {
        const char* given = std::getenv("VARATTN_SEED");
        const uint64_t value = given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
        std::printf("VARATTN_SEED=%llu repeats this run\n", static_cast<unsigned long long>(value));
        return value;
    }();
    return seed;
}

// How many random cases a test tries: `usual`, times VARATTN_FUZZ_FACTOR.
inline int num_cases(int usual) {
    const char* factor = std::getenv("VARATTN_FUZZ_FACTOR");
    return factor ? static_cast<int>(usual * std::atof(factor)) : usual;
}

class Random {
public:
    explicit Random(uint64_t seed) : engine_(seed) {}

    // Both ends included.
    int32_t integer(int64_t low, int64_t high) {
        return static_cast<int32_t>(std::uniform_int_distribution<int64_t>(low, high)(engine_));
    }
    bool chance(double probability) { return std::bernoulli_distribution(probability)(engine_); }
    float normal() { return std::normal_distribution<float>()(engine_); }
    template <class T>
    T pick(std::initializer_list<T> values) {
        return values.begin()[integer(0, static_cast<int64_t>(values.size()) - 1)];
    }

private:
    std::mt19937_64 engine_;
};

// A buffer of exactly this many bytes, aligned to 16, with guards that `intact` looks at.
class Buffer {
public:
    explicit Buffer(int64_t bytes, uint8_t fill) : bytes_(bytes), memory_(bytes + 2 * kGuard, kGuardByte) {
        std::memset(data(), fill, bytes);
    }
    void* data() { return memory_.data() + kGuard; }
    bool intact() const {
        for (int i = 0; i < kGuard; ++i)
            if (memory_[i] != kGuardByte || memory_[kGuard + bytes_ + i] != kGuardByte) return false;
        return true;
    }

private:
    static constexpr int kGuard = 64;
    static constexpr uint8_t kGuardByte = 0xa5;
    int64_t bytes_;
    std::vector<uint8_t> memory_;
};

class Plan {
public:
    Plan(const PlanConfig& config, const SequenceLengths& lengths)
        : buffer_(plan_layout(config).bytes, 0xcd), config_(config) {
        plan_on_host(config, costs(), lengths, buffer_.data());
    }
    CostModel costs() const { return cost_model(static_cast<KernelId>(config_.kernel)); }
    void* data() { return buffer_.data(); }
    PlanHeader& header() { return *static_cast<PlanHeader*>(buffer_.data()); }
    WorkItem* items() {
        return reinterpret_cast<WorkItem*>(static_cast<char*>(buffer_.data()) + plan_layout(config_).items);
    }
    bool intact() const { return buffer_.intact(); }

private:
    Buffer buffer_;
    PlanConfig config_;
};

// Runs `call`, which must throw Error(code) with `part` in its message.
template <class Call>
void expect_error(ErrorCode code, const std::string& part, const Call& call) {
    try {
        call();
        ADD_FAILURE() << "no error; expected: " << part;
    } catch (const Error& error) {
        EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
            << "got:      " << error.what() << "\nexpected: " << part;
    }
}

}  // namespace varattn::test
