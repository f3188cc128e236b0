// CPU attention against the reference, over random combinations of everything.
#include "problem.h"

namespace varattn {
namespace {

using test::Answer;
using test::Problem;
using test::ProblemSpec;
using test::Random;

int32_t random_q_len(Random& random, int32_t style) {
    switch (style) {
        case 0: return 1;
        case 1: return random.integer(1, 16);
        case 2: return random.integer(0, 150);
        default: return random.pick({0, 1, 1, 2, 7, 64, 65, random.integer(0, 200)});
    }
}

int32_t random_kv_len(Random& random, int32_t q_len) {
    switch (random.integer(0, 4)) {
        case 0: return random.pick({0, 1, 63, 64, 65, 128});
        case 1: return random.integer(0, q_len);  // shorter than q
        case 2: return q_len + random.integer(0, 100);
        default: return random.integer(0, 3000);
    }
}

ProblemSpec random_spec(Random& random) {
    ProblemSpec s;
    PlanOptions& o = s.options;
    o.dtype = random.pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
    const int32_t group = random.chance(0.1) ? random.pick({32, 48, 64, 65, 100, 128}) : random.integer(1, 16);
    o.num_heads_kv = group > 16 ? 1 : random.pick({1, 1, 2, 3});
    o.num_heads_q = group * o.num_heads_kv;
    o.head_dim = random.pick({8, 16, 24, 40, 64, 72, 80, 96, 128, 192, 256, 512, 8 * random.integer(1, 16)});
    o.head_dim_v = random.chance(0.7) ? 0 : random.pick({8, 32, 56, 128, 256, 8 * random.integer(1, 16)});
    o.causal = random.chance(0.4);
    if (random.chance(0.3)) o.window_left = random.integer(0, random.pick({0, 5, 100, 2000}));
    if (random.chance(0.3)) o.window_right = random.integer(0, random.pick({0, 5, 100}));
    o.num_splits = random.chance(0.3)   ? 0
                   : random.chance(0.3) ? random.integer(1, kMaxNumSplits)
                                        : random.integer(1, 8);
    o.batch_invariant = random.chance(0.1);
    o.sm_margin = random.chance(0.2) ? random.integer(0, kCpuWorkers - 1) : 0;

    const int32_t n = random.pick({0, 1, 1, 2, 3, 5, 8}), style = random.integer(0, 3);
    for (int32_t i = 0; i < n; ++i) {
        s.q_lens.push_back(random_q_len(random, style));
        s.kv_lens.push_back(random_kv_len(random, s.q_lens.back()));
    }
    // The reference is slow: shorten what is too much for it.
    auto cost = [&] {
        double sum = 0;
        for (int32_t i = 0; i < n; ++i)
            sum += double(s.q_lens[i]) * s.kv_lens[i] * o.num_heads_q * o.head_dim * 2;
        return sum;
    };
    while (cost() > 8e6)
        for (int32_t i = 0; i < n; ++i)
            (random.chance(0.5) ? s.q_lens[i] : s.kv_lens[i]) /= 2;

    if (random.chance(0.6))
        s.page_size = random.chance(0.5) ? random.integer(1, 256) : random.pick({1, 2, 16, 64, 128});
    s.packed_with_seqused = random.chance(0.5);
    s.rows_before = random.chance(0.2) ? random.integer(1, 5) : 0;
    s.rows_after = random.chance(0.4) ? random.integer(1, 20) : 0;
    s.softmax_scale = random.chance(0.1) ? 1.0f : 1.0f / std::sqrt(static_cast<float>(o.head_dim));
    s.softcap = random.chance(0.2) ? random.pick({1.0f, 15.0f, 50.0f}) : 0.0f;
    s.with_sinks = random.chance(0.3);
    return s;
}

TEST(AttentionFuzz, EqualsTheReference) {
    const int cases = test::num_cases(500);
    int split_tiles = 0;
    for (int i = 0; i < cases; ++i) {
        const uint64_t seed = test::first_seed() + i;
        SCOPED_TRACE("VARATTN_SEED=" + std::to_string(seed));
        Random random(seed);
        Problem problem(random_spec(random), random);
        const Answer one = problem.attend(1);
        problem.expect_close(one, problem.reference());
        const Answer many = problem.attend(random.integer(2, 6));
        EXPECT_EQ(std::memcmp(one.out.data(), many.out.data(), one.out.size() * sizeof(double)), 0) << "threads matter";
        EXPECT_EQ(one.lse, many.lse);
        split_tiles += problem.num_split_tiles;
        if (testing::Test::HasFailure()) return;
    }
    EXPECT_GT(split_tiles, cases / 10) << "the fuzz did not try splits";
}

}  // namespace
}  // namespace varattn
