// The device planner's code, its threads run on the CPU, against the host planner: equal byte for byte.
#include <algorithm>
#include <memory>
#include <numeric>

#include "support.h"

// Defines the words that the next is written in.
#include "simt/simt.h"

#include "cuda/planner_kernel.cuh"

namespace varattn {
namespace {

using test::Random;

struct Batch {
    std::vector<int32_t> cu_seqlens_q{0}, seqused_k, cu_seqlens_k{0};
};

Batch random_batch(Random& random, int32_t n) {
    Batch b;
    const double prefills = random.pick({0.0, 0.1, 1.0});
    const int32_t longest_q = random.pick({20, 400}), longest_k = random.pick({10, 3000, 200000});
    for (int32_t i = 0; i < n; ++i) {
        const int32_t q = random.chance(prefills) ? random.integer(0, longest_q) : random.integer(0, 2);
        const int32_t k = random.chance(0.01) ? 1 << 20 : random.integer(0, longest_k);
        b.cu_seqlens_q.push_back(b.cu_seqlens_q.back() + q);
        b.cu_seqlens_k.push_back(
            static_cast<int32_t>(std::min<int64_t>(int64_t{b.cu_seqlens_k.back()} + k, INT32_MAX)));
        b.seqused_k.push_back(k);
    }
    return b;
}

void spoil(Random& random, std::vector<int32_t>& values) {
    for (int i = 0; i < 3 && !values.empty(); ++i)
        values[random.integer(0, static_cast<int64_t>(values.size()) - 1)] =
            random.pick<int32_t>({-1, INT32_MIN, INT32_MAX, 0, 1 << 29, (1 << 29) + 1, random.integer(-100, 5000)});
}

PlanConfig random_config(Random& random, const Batch& b) {
    PlanOptions o;
    o.num_heads_kv = random.pick({1, 1, 2, 8, 40});
    o.num_heads_q = o.num_heads_kv * random.pick({1, 2, 4, 5, 8, 16, 100});
    o.head_dim = random.pick({64, 128, 256});
    o.causal = random.chance(0.6);
    if (random.chance(0.3)) o.window_left = random.integer(0, 3000);
    o.num_splits = random.pick({0, 0, 1, 2, 32, 256});
    o.batch_invariant = random.chance(0.2);
    o.max_seqs = static_cast<int32_t>(b.seqused_k.size());
    o.max_total_q = std::clamp(b.cu_seqlens_q.back() + random.pick({0, 0, 20, -1}), 0, 1 << 20);
    PlanConfig c = make_plan_config({DeviceType::kCuda, random.pick({80, 90, 90}), 132}, o);
    if (c.batch_invariant) c.num_splits = random.pick({1, 8, 64});
    return c;
}

void run_device_planner(const PlanConfig& c, const CostModel& costs, const SequenceLengths& lengths, void* plan,
                        uint64_t seed) {
    const bool has_clusters = seed % 4 > 0;
    const planner::PlannerParams params{
        c, costs, tile_shape(c), lengths, plan_layout(c), static_cast<char*>(plan), planner::num_ctas(c, has_clusters)};
    std::vector<planner::SharedMemory> shared(params.num_ctas);
    std::vector<char*> addresses;
    for (planner::SharedMemory& of_block : shared) {
        std::memset(static_cast<void*>(&of_block), 0x5a, sizeof of_block);
        addresses.push_back(reinterpret_cast<char*>(&of_block));
    }
    auto thread = [&] {
        planner::prepare(params, shared[blockIdx.x]);
        planner::run(params, shared[blockIdx.x]);
    };
    simt::Cluster(planner::kThreads, addresses, seed, thread).run();
}

// Returns the host's plan.
test::Plan expect_equal_plans(const PlanConfig& c, const SequenceLengths& lengths, uint64_t seed) {
    test::Plan want(c, lengths), got(c, lengths);
    std::memset(got.data(), 0x77, plan_layout(c).bytes);
    run_device_planner(c, want.costs(), lengths, got.data(), seed);
    EXPECT_TRUE(got.intact()) << "VARATTN_SEED=" << seed;
    const PlanHeader &w = want.header(), &g = got.header();
    EXPECT_EQ(std::memcmp(&g, &w, sizeof w), 0)
        << "VARATTN_SEED=" << seed << ": " << c.max_seqs << " sequences; items " << g.num_items << ", " << w.num_items;
    for (int32_t i = 0; i < w.num_items && !testing::Test::HasFailure(); ++i)
        EXPECT_EQ(std::memcmp(got.items() + i, want.items() + i, sizeof(WorkItem)), 0)
            << "VARATTN_SEED=" << seed << ": item " << i << " of " << w.num_items;
    return want;
}

void expect_equal_random_plans(Random& random, uint64_t seed, Batch b) {
    const PlanConfig c = random_config(random, b);
    if (random.chance(0.25)) {
        spoil(random, b.cu_seqlens_q);
        spoil(random, b.cu_seqlens_k);
        spoil(random, b.seqused_k);
    }
    const int layout = random.integer(0, 2);
    expect_equal_plans(c,
                       {b.cu_seqlens_q.data(), layout == 1 ? nullptr : b.seqused_k.data(),
                        layout == 0 ? nullptr : b.cu_seqlens_k.data()},
                       seed);
}

TEST(DevicePlanner, RandomPlansEqualTheHostPlanners) {
    const int cases = test::num_cases(40);
    for (int i = 0; i < cases && !testing::Test::HasFailure(); ++i) {
        const uint64_t seed = test::first_seed() + i;
        Random random(seed);
        const int32_t n = random.pick({0, 1, 2, 16, 33, 132, 300, random.integer(0, 1000)});
        expect_equal_random_plans(random, seed, random_batch(random, n));
    }
}

TEST(DevicePlanner, BatchesOfEverySizeEqualTheHostPlanners) {
    uint64_t seed = test::first_seed();
    for (const int32_t n : {991, 992, 993, 1024, 1025, 1537, 2500, 4096})
        for (int i = 0; i < 4 && !testing::Test::HasFailure(); ++i) {
            Random random(++seed);
            expect_equal_random_plans(random, seed, random_batch(random, n));
        }
}

// Few sequences, but too many tiles for shared memory.
TEST(DevicePlanner, ManyTilesOfFewSequencesEqualTheHostPlanners) {
    uint64_t seed = test::first_seed();
    for (int i = 0; i < 3 && !testing::Test::HasFailure(); ++i) {
        Random random(++seed);
        Batch b;
        for (int32_t n = 0; n < 300; ++n) {
            b.cu_seqlens_q.push_back(b.cu_seqlens_q.back() + random.integer(1800, 2200));
            b.seqused_k.push_back(random.integer(0, 10000));
            b.cu_seqlens_k.push_back(b.cu_seqlens_k.back() + b.seqused_k.back());
        }
        expect_equal_random_plans(random, seed, b);
    }
}

// The sum of their blocks is 0 modulo 2^32.
TEST(DevicePlanner, MoreBlocksThanCanBeSummedUpEqualTheHostPlanners) {
    constexpr int32_t kNumSeqs = 1 << 13;
    std::vector<int32_t> cu_seqlens_q(kNumSeqs + 1), seqused_k(kNumSeqs, 1 << 26);
    std::iota(cu_seqlens_q.begin(), cu_seqlens_q.end(), 0);
    PlanOptions o;
    o.num_heads_q = 8;
    o.num_heads_kv = 1;
    o.head_dim = 128;
    o.max_seqs = o.max_total_q = kNumSeqs;
    const PlanConfig c = make_plan_config({DeviceType::kCuda, 90, 132}, o);
    test::Plan plan = expect_equal_plans(c, {cu_seqlens_q.data(), seqused_k.data(), nullptr}, test::first_seed());
    EXPECT_EQ(plan.header().num_split_tiles, 0);
}

// Three decodes are split, with 256 segments each, for which there is room once: in whichever CTA they are.
TEST(DevicePlanner, TilesWithoutRoomForPartialResultsAreNotSplit) {
    for (int i = 0; i < 8 && !testing::Test::HasFailure(); ++i) {
        const uint64_t seed = test::first_seed() + i;
        Random random(seed);
        const int32_t n = random.integer(40, 1000);
        std::vector<int32_t> cu_seqlens_q(n + 1), seqused_k(n, 1000);
        std::iota(cu_seqlens_q.begin(), cu_seqlens_q.end(), 0);
        for (int long_one = 0; long_one < 3; ++long_one)
            seqused_k[random.integer(long_one * n / 3, (long_one + 1) * n / 3 - 1)] = 256 * kSegmentKeys;
        PlanOptions o;
        o.num_heads_q = 32;
        o.num_heads_kv = 8;
        o.head_dim = 128;
        o.batch_invariant = true;
        o.num_splits = 64;
        o.max_seqs = o.max_total_q = n;
        const PlanConfig c = make_plan_config({DeviceType::kCuda, 90, 132}, o);
        test::Plan plan = expect_equal_plans(c, {cu_seqlens_q.data(), seqused_k.data(), nullptr}, seed);
        EXPECT_EQ(plan.header().num_split_tiles, 1) << "VARATTN_SEED=" << seed;
    }
}

}  // namespace
}  // namespace varattn
