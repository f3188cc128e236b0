// The host planner: every plan is proved by find_plan_fault, and some decisions are spelled out.
#include <algorithm>
#include <functional>
#include <queue>

#include "support.h"

namespace varattn {
namespace {

using test::Plan;
using test::Random;

// Lengths of a step. Vectors own what SequenceLengths points to.
struct Batch {
    std::vector<int32_t> cu_seqlens_q{0}, seqused_k, cu_seqlens_k;
    SequenceLengths lengths() const {
        return {cu_seqlens_q.data(), seqused_k.empty() ? nullptr : seqused_k.data(),
                cu_seqlens_k.empty() ? nullptr : cu_seqlens_k.data()};
    }
    void add(int32_t q_len, int32_t kv_len) {
        cu_seqlens_q.push_back(cu_seqlens_q.back() + q_len);
        seqused_k.push_back(kv_len);
    }
};

PlanConfig config_for(const Batch& batch, const Device& device, int32_t heads_q, int32_t heads_kv, int32_t head_dim,
                      int32_t num_splits = 0) {
    PlanOptions o;
    o.num_heads_q = heads_q;
    o.num_heads_kv = heads_kv;
    o.head_dim = head_dim;
    o.causal = true;
    o.num_splits = num_splits;
    o.max_seqs = static_cast<int32_t>(batch.cu_seqlens_q.size()) - 1;
    o.max_total_q = batch.cu_seqlens_q.back();
    return make_plan_config(device, o);
}

constexpr Device kHopper{DeviceType::kCuda, 90, 132}, kAmpere{DeviceType::kCuda, 80, 108};

std::string fault_of(const PlanConfig& c, const SequenceLengths& lengths) {
    Plan plan(c, lengths);
    if (!plan.intact()) return "the planner wrote outside plan_size bytes";
    return find_plan_fault(c, plan.costs(), lengths, plan.data());
}

PlanConfig random_config(Random& random, int32_t max_seqs, int32_t max_total_q) {
    PlanOptions o;
    o.num_heads_kv = random.pick({1, 1, 2, 3, 8});
    o.num_heads_q = o.num_heads_kv * random.pick({1, 2, 3, 4, 5, 7, 8, 16, 48, 64, 65, 128, 200});
    o.head_dim = random.pick({8, 64, 96, 128, 192, 256});
    o.head_dim_v = random.pick({0, 64, 128});
    o.causal = random.chance(0.5);
    if (random.chance(0.3)) o.window_left = random.integer(0, random.pick({0, 10, 300, 5000}));
    if (random.chance(0.3)) o.window_right = random.integer(0, random.pick({0, 10, 300}));
    o.num_splits = random.chance(0.3) ? 0 : random.integer(1, kMaxNumSplits);
    o.batch_invariant = random.chance(0.2);
    o.max_seqs = max_seqs;
    o.max_total_q = max_total_q;
    const Device device = random.pick({cpu_device(), kHopper, kAmpere, Device{DeviceType::kCuda, 120, 188}});
    o.sm_margin = random.chance(0.2) ? random.integer(0, device.num_sms - 1) : 0;
    PlanConfig c = make_plan_config(device, o);
    if (random.chance(0.4)) {  // tile shapes of kernels with a decode mode, which the table need not have today
        c.tile_rows = 128;
        c.tile_rows_decode = random.pick({16, 64});
        c.block_n = random.pick({64, 128});
    }
    if (c.batch_invariant) c.num_splits = random.integer(1, kMaxNumSplits);  // whether the kernel folds segments or not
    return c;
}

std::vector<int32_t> random_offsets(Random& random, int32_t n, bool hostile, int32_t longest) {
    std::vector<int32_t> offsets{hostile ? random.integer(-20, 20) : random.integer(0, 10)};
    for (int32_t i = 0; i < n; ++i) {
        int64_t next = int64_t{offsets.back()} + random.integer(0, random.chance(0.3) ? 0 : longest);
        if (hostile && random.chance(0.2))
            next = random.pick<int64_t>({INT32_MIN, INT32_MAX, -1, 0, random.integer(-100, 1000), 1 << 29, 1 << 30});
        offsets.push_back(static_cast<int32_t>(std::clamp<int64_t>(next, INT32_MIN, INT32_MAX)));
    }
    return offsets;
}

TEST(Planner, RandomBatchesAreCoveredOnce) {
    const int cases = test::num_cases(4000);
    int split_tiles = 0, decode_items = 0, statuses = 0;
    for (int i = 0; i < cases; ++i) {
        const uint64_t seed = test::first_seed() + i;
        Random random(seed);
        const bool hostile = random.chance(0.4);
        const int32_t n = random.pick({0, 1, 2, 3, 8, 30, random.integer(0, 300)});
        const int32_t longest_q = random.pick({1, 1, 4, 60, 500}), longest_k = random.pick({1, 50, 3000, 200000});
        Batch batch;
        batch.cu_seqlens_q = random_offsets(random, n, hostile, longest_q);
        if (random.chance(0.4)) batch.cu_seqlens_k = random_offsets(random, n, hostile, longest_k);
        if (n > 0 && (batch.cu_seqlens_k.empty() || random.chance(0.3)))
            for (int32_t s = 0; s < n; ++s)
                batch.seqused_k.push_back(hostile && random.chance(0.2)
                                              ? random.pick({-1, INT32_MIN, INT32_MAX, 1 << 29, (1 << 29) + 1})
                                              : random.integer(0, longest_k));
        const int32_t capacity =
            random.chance(0.5) ? std::clamp(batch.cu_seqlens_q.back(), 0, 100000) : random.integer(0, 20000);
        const PlanConfig c = random_config(random, n, capacity);

        Plan plan(c, batch.lengths());
        ASSERT_TRUE(plan.intact()) << "VARATTN_SEED=" << seed;
        ASSERT_EQ(find_plan_fault(c, plan.costs(), batch.lengths(), plan.data()), "") << "VARATTN_SEED=" << seed;
        split_tiles += plan.header().num_split_tiles;
        decode_items += plan.header().num_items - plan.header().num_front_items;
        statuses += plan.header().status != 0;
    }
    EXPECT_GT(split_tiles, cases / 10);
    EXPECT_GT(decode_items, cases / 10);
    EXPECT_GT(statuses, cases / 10);
}

TEST(Planner, ExtremeLengthsDoNotOverflow) {
    Batch batch;
    batch.cu_seqlens_q = {0, 1 << 20, 1 << 22};
    batch.seqused_k = {INT32_MAX, kMaxLength};
    for (const Device& device : {cpu_device(), kHopper}) {
        PlanConfig c = config_for(batch, device, 64, 8, 128);
        Plan plan(c, batch.lengths());
        EXPECT_EQ(find_plan_fault(c, plan.costs(), batch.lengths(), plan.data()), "");
        EXPECT_EQ(plan.header().status, kStatusSequsedK);
    }
}

// The sum of these blocks, or of their pieces' partial results, is 0 modulo 2^32.
TEST(Planner, MoreBlocksThanCanBeSummedUpAreNotSplit) {
    for (const auto& [num_seqs, kv_len] : {std::pair{1 << 13, 1 << 26}, std::pair{(1 << 20) + 2, 1 << 23}}) {
        Batch batch;
        for (int32_t i = 0; i < num_seqs; ++i)
            batch.add(1, kv_len);
        for (const bool batch_invariant : {false, true}) {
            PlanConfig c = config_for(batch, kHopper, 8, 1, 128, kMaxNumSplits);
            c.batch_invariant = batch_invariant;
            Plan plan(c, batch.lengths());
            EXPECT_TRUE(plan.intact());
            EXPECT_EQ(find_plan_fault(c, plan.costs(), batch.lengths(), plan.data()), "");
            EXPECT_EQ(plan.header().num_items, num_seqs);
        }
    }
}

TEST(Planner, StatusSaysWhatWasClamped) {
    auto status = [](std::vector<int32_t> q, std::vector<int32_t> used, std::vector<int32_t> k, int32_t max_total_q) {
        Batch batch;
        batch.cu_seqlens_q = {0, 0};
        PlanConfig c = config_for(batch, cpu_device(), 2, 1, 64);
        c.max_seqs = static_cast<int32_t>(q.size()) - 1;
        c.max_total_q = max_total_q;
        batch = {q, used, k};
        Plan plan(c, batch.lengths());
        EXPECT_EQ(find_plan_fault(c, plan.costs(), batch.lengths(), plan.data()), "");
        return plan.header().status;
    };
    EXPECT_EQ(status({0, 4, 9}, {3, 3}, {}, 9), 0u);
    EXPECT_EQ(status({2, 4, 9}, {3, 3}, {}, 9), 0u);
    EXPECT_EQ(status({0, 4, 10}, {3, 3}, {}, 9), kStatusCuSeqlensQ);
    EXPECT_EQ(status({-1, 4, 9}, {3, 3}, {}, 9), kStatusCuSeqlensQ);
    EXPECT_EQ(status({0, 4, 3}, {3, 3}, {}, 9), kStatusCuSeqlensQ);
    EXPECT_EQ(status({0, 4, 9}, {-1, 3}, {}, 9), kStatusSequsedK);
    EXPECT_EQ(status({0, 4, 9}, {3, kMaxLength + 1}, {}, 9), kStatusSequsedK);
    EXPECT_EQ(status({0, 4, 9}, {}, {0, 5, 5}, 9), 0u);
    EXPECT_EQ(status({0, 4, 9}, {}, {0, 5, 4}, 9), kStatusCuSeqlensK);
    EXPECT_EQ(status({0, 4, 9}, {}, {-5, 5, 5}, 9), kStatusCuSeqlensK);
    EXPECT_EQ(status({0, 4, 9}, {}, {0, kMaxLength + 1, kMaxLength + 1}, 9), kStatusCuSeqlensK);
    EXPECT_EQ(status({0, 4, 9}, {5, 0}, {0, 5, 5}, 9), 0u);
    EXPECT_EQ(status({0, 4, 9}, {6, 0}, {0, 5, 5}, 9), kStatusSequsedK);
}

TEST(Planner, OneLongDecodeFillsTheGpu) {
    Batch batch;
    batch.add(1, 128 * 1024);
    const PlanConfig c = config_for(batch, kAmpere, 32, 8, 128);
    Plan plan(c, batch.lengths());
    EXPECT_EQ(plan.header().num_items, c.num_ctas / 8);
    EXPECT_EQ(plan.header().num_split_tiles, 1);
}

TEST(Planner, SplitsStayWithinTheBound) {
    Batch batch;
    batch.add(1, 1 << 20);
    for (int32_t bound : {1, 2, 7, 64, 256}) {
        const PlanConfig c = config_for(batch, kHopper, 1, 1, 128, bound);
        Plan plan(c, batch.lengths());
        EXPECT_EQ(plan.header().num_items, std::min(bound, c.num_ctas));
        EXPECT_EQ(find_plan_fault(c, plan.costs(), batch.lengths(), plan.data()), "");
    }
}

TEST(Planner, ManySequencesWithOneLongStillSplitTheLongOne) {
    for (int32_t n : {991, 992, 993, 1024, 4096}) {
        Batch batch;
        for (int32_t i = 0; i < n; ++i)
            batch.add(1, i == n / 2 ? 1 << 20 : 20);
        const PlanConfig c = config_for(batch, kHopper, 8, 1, 128);
        Plan plan(c, batch.lengths());
        EXPECT_EQ(find_plan_fault(c, plan.costs(), batch.lengths(), plan.data()), "");
        EXPECT_EQ(plan.header().num_split_tiles, 1);
        EXPECT_GE(plan.header().num_items, n + 31);
    }
}

// The makespan of a one-ended queue, over the average load of its CTAs.
double makespan_over_fair_share(Plan& plan, const PlanConfig& c) {
    std::priority_queue<int64_t, std::vector<int64_t>, std::greater<>> loads;
    for (int32_t i = 0; i < c.num_ctas; ++i)
        loads.push(0);
    std::vector<int64_t> costs;
    for (int32_t i = 0; i < plan.header().num_items; ++i)
        costs.push_back(plan.items()[i].cost);
    if (plan.header().num_front_ctas == 0) std::reverse(costs.begin(), costs.end());
    int64_t total = 0, last = 0;
    for (int64_t cost : costs)
        for (int32_t head = 0; head < c.num_heads_kv; ++head) {
            const int64_t end = loads.top() + cost;
            loads.pop();
            loads.push(end);
            last = std::max(last, end);
            total += cost;
        }
    return static_cast<double>(last) * c.num_ctas / static_cast<double>(total);
}

TEST(Planner, LongStepsOfOneKindEndTogether) {
    const int cases = test::num_cases(300);
    for (int i = 0; i < cases; ++i) {
        const uint64_t seed = test::first_seed() + i;
        Random random(seed);
        const bool decode = random.chance(0.6);
        const int32_t n = random.integer(1, 200), heads_kv = random.pick({1, 2, 4, 8});
        Batch batch;
        for (int32_t s = 0; s < n; ++s)
            batch.add(decode ? random.integer(1, 2) : random.integer(5, 500), random.integer(500, 65536) + 131072 / n);
        const PlanConfig c = config_for(batch, kHopper, heads_kv * 8, heads_kv, 128, kMaxNumSplits);
        Plan plan(c, batch.lengths());
        ASSERT_EQ(plan.header().num_front_ctas, decode ? 0 : c.num_ctas);
        // Decodes that saturate the memory as they are may leave CTAs without any.
        const int32_t tasks = plan.header().num_items * heads_kv;
        const bool saturate = tasks >= plan.costs().streaming_ctas && tasks <= c.num_ctas;
        if (decode && plan.header().num_split_tiles == 0 && saturate) continue;
        ASSERT_LT(makespan_over_fair_share(plan, c), 1.5) << "VARATTN_SEED=" << seed;
    }
}

TEST(Planner, RaggedDecodesOfOneKvHeadEndTogether) {
    Batch batch;
    for (int i = 0; i < 128; ++i)
        batch.add(1, 64 + i * i * 2);
    const PlanConfig c = config_for(batch, kHopper, 8, 1, 128);
    Plan plan(c, batch.lengths());
    EXPECT_LT(makespan_over_fair_share(plan, c), 1.3);
}

TEST(Planner, MemoryBoundStepsLeaveTheFrontSlackAndOthersNone) {
    auto front_of = [](int32_t prefill, int32_t decodes, int32_t kv) {
        Batch batch;
        batch.add(prefill, prefill);
        for (int32_t i = 0; i < decodes; ++i)
            batch.add(1, kv);
        const PlanConfig c = config_for(batch, kHopper, 32, 8, 128);
        return Plan(c, batch.lengths()).header().num_front_ctas;
    };
    // As many CTAs as saturate the memory stay at the back, and the front gets half of what prefill does not need.
    EXPECT_NEAR(front_of(128, 128, 8192), (132 - 57) / 2, 2);
    EXPECT_GT(front_of(8192, 8, 1024), 128);
    EXPECT_EQ(front_of(0, 8, 1024), 0);
    EXPECT_EQ(front_of(128, 0, 0), 132);
}

int32_t most_splits(int32_t seqs, int32_t q_len, int32_t kv_len, int32_t heads_q, int32_t heads_kv) {
    Batch batch;
    for (int32_t i = 0; i < seqs; ++i)
        batch.add(q_len, kv_len);
    const PlanConfig c = config_for(batch, kHopper, heads_q, heads_kv, 128);
    Plan plan(c, batch.lengths());
    int32_t most = 0;
    for (int32_t i = 0; i < plan.header().num_items; ++i)
        most = std::max(most, plan.items()[i].num_splits);
    return most;
}

TEST(Planner, DecodesAreCutToFillOneWaveOfCtas) {
    EXPECT_EQ(most_splits(1, 1, 2048, 32, 8), 16);  // a block each
    EXPECT_EQ(most_splits(1, 1, 65536, 32, 8), 16);
    EXPECT_EQ(most_splits(2, 1, 4096, 4, 1), 32);
    EXPECT_EQ(most_splits(2, 1, 8192, 4, 1), 16);  // not more than are merged at a time
    EXPECT_EQ(most_splits(1, 1, 32768, 8, 2), 32);
    EXPECT_EQ(most_splits(4, 1, 8192, 32, 8), 4);
    // 64 tasks saturate the memory as they are.
    EXPECT_EQ(most_splits(8, 1, 512, 32, 8), 1);
    EXPECT_EQ(most_splits(8, 1, 65536, 32, 8), 1);
}

TEST(Planner, EqualTilesOfNearlyTwoRoundsStayWhole) {
    EXPECT_EQ(most_splits(128, 1, 4096, 16, 2), 1);
    EXPECT_EQ(most_splits(128, 1, 4096, 256, 2), 1);  // groups of 128, in prefill mode
    EXPECT_EQ(most_splits(70, 1, 4096, 16, 2), 2);
    EXPECT_EQ(most_splits(70, 1, 4096, 256, 2), 2);
}

TEST(Planner, SectionsLastAsLongAsTheLongestTile) {
    auto section_heads = [](std::initializer_list<std::pair<int32_t, int32_t>> lengths) {
        Batch batch;
        for (auto [q_len, kv_len] : lengths)
            batch.add(q_len, kv_len);
        const PlanConfig c = config_for(batch, kHopper, 32, 8, 128);
        return Plan(c, batch.lengths()).header().section_heads;
    };
    EXPECT_EQ(section_heads({{16384, 16384}}), 1);
    EXPECT_EQ(section_heads({{1024, 1024}, {1024, 1024}, {1024, 1024}, {1024, 1024}}), 3);
    EXPECT_EQ(section_heads({{2048, 8192}}), 8);
    EXPECT_EQ(section_heads({{2048, 2048}, {2048, 2048}}), 3);
    EXPECT_EQ(section_heads({{217, 7411}, {3900, 3900}}), 4);
    EXPECT_EQ(section_heads({{217, 32768}, {3900, 3900}}), 8);  // four heads' tiles would begin after half of the time
    EXPECT_EQ(section_heads({{1, 4096}}), 8);
}

TEST(Planner, LongPrefillTilesRunInEvenRounds) {
    auto plan_of = [](int32_t prefill, int32_t kv, int32_t decodes, int32_t decode_kv) {
        Batch batch;
        batch.add(prefill, kv);
        for (int32_t i = 0; i < decodes; ++i)
            batch.add(1, decode_kv);
        const PlanConfig c = config_for(batch, kHopper, 32, 8, 128);
        Plan plan(c, batch.lengths());
        return std::pair(plan.header().num_front_items * 8, plan.header().num_front_ctas);
    };
    // 512 tasks of 44 to 52 blocks: four rounds of 128 CTAs, not four of 125 and a few tasks more.
    const auto [tasks, front] = plan_of(2032, 6621, 16, 1600);
    EXPECT_EQ(tasks, 512);
    EXPECT_EQ(front, 128);
    // Tiles of 1 to 16 blocks: the short ones even it out.
    EXPECT_LT(plan_of(2032, 2032, 16, 1600).second, 115);
}

TEST(Planner, LongDecodesKeepTheirCtasBesideRounds) {
    Batch batch;
    batch.add(1958, 1958);
    batch.add(90, 90);
    batch.add(1, 4535);  // eight tasks of half of the time
    const PlanConfig c = config_for(batch, kHopper, 32, 8, 128);
    EXPECT_LE(Plan(c, batch.lengths()).header().num_front_ctas, 128);
}

TEST(Planner, CtasWithoutADecodeStartAtTheFront) {
    Batch batch;
    batch.add(1, 65536);
    for (int32_t i = 0; i < 31; ++i)
        batch.add(64, 64);
    const PlanConfig c = config_for(batch, kHopper, 32, 8, 128);
    Plan plan(c, batch.lengths());
    const int32_t decodes = (plan.header().num_items - plan.header().num_front_items) * 8;
    EXPECT_LT(decodes, 132);
    EXPECT_EQ(plan.header().num_front_ctas, 132 - decodes);
}

TEST(Planner, AFewLongTilesAmongShortOnesRunInEvenRounds) {
    Batch batch;
    batch.add(959, 7436);  // 240 tasks of 52 to 59 blocks
    batch.add(240, 240);
    batch.add(824, 824);
    for (int32_t i = 0; i < 25; ++i)
        batch.add(1, 1845);
    const PlanConfig c = config_for(batch, kHopper, 32, 8, 128);
    const int32_t front = Plan(c, batch.lengths()).header().num_front_ctas;
    EXPECT_GE(front, 120);
    EXPECT_LE(front, 124);
}

int32_t split_tiles(std::vector<std::pair<int32_t, int32_t>> lengths, int32_t heads_kv) {
    Batch batch;
    for (auto [q_len, kv_len] : lengths)
        batch.add(q_len, kv_len);
    const PlanConfig c = config_for(batch, kHopper, heads_kv * 4, heads_kv, 128);
    return Plan(c, batch.lengths()).header().num_split_tiles;
}

TEST(Planner, PrefillsThatOtherItemsEvenOutStayWhole) {
    // Tiles of less than the fair share, and of more than five eighths of it: 1.2 rounds of them.
    std::vector<std::pair<int32_t, int32_t>> lengths(5, {1024, 4096});
    EXPECT_GT(split_tiles(lengths, 1), 0);
    lengths.insert(lengths.end(), 60, {1, 4096});
    EXPECT_EQ(split_tiles(lengths, 1), 0);
    // 2.2 rounds.
    lengths.assign(9, {1024, 4096});
    lengths.push_back({128, 7000});  // the same
    EXPECT_EQ(split_tiles(lengths, 1), 0);
    EXPECT_EQ(split_tiles({{1000, 1000}, {100, 7400}}, 8), 4);  // tiles of more than two fair shares
}

TEST(Planner, QueuedPrefillsAreNotCutIntoShortPieces) {
    EXPECT_EQ(split_tiles({{1792, 1792}, {1792, 1792}, {1792, 1792}}, 1), 0);
    EXPECT_EQ(split_tiles({{1792, 1793}, {1792, 1792}, {1792, 1792}}, 1), 1);  // one of its tiles has 15 blocks
}

TEST(Planner, LongestItemsComeFirst) {
    Batch batch;
    for (int32_t kv : {100, 9000, 500, 40000, 2000})
        batch.add(64, kv);
    const PlanConfig c = config_for(batch, kHopper, 8, 8, 128, 1);
    Plan plan(c, batch.lengths());
    std::vector<int32_t> lengths;
    for (int32_t i = 0; i < plan.header().num_items; ++i)
        lengths.push_back(plan.items()[i].kv_len);
    lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
    EXPECT_EQ(lengths, (std::vector<int32_t>{40000, 9000, 2000, 500, 100}));
}

TEST(Planner, InvariantPiecesEndAtSegments) {
    Batch batch;
    batch.add(1, 400000);
    batch.add(1, 100);
    batch.add(300, 50000);
    PlanConfig c = config_for(batch, kHopper, 8, 1, 128);
    c.batch_invariant = 1;
    c.num_splits = 64;
    Plan plan(c, batch.lengths());
    EXPECT_EQ(find_plan_fault(c, plan.costs(), batch.lengths(), plan.data()), "");
    EXPECT_GE(plan.header().num_split_tiles, 2);
    int32_t pieces = 0;
    for (int32_t i = 0; i < plan.header().num_items; ++i) {
        const WorkItem& w = plan.items()[i];
        EXPECT_EQ(w.flags, 0);
        EXPECT_EQ(w.block_begin * c.block_n % kSegmentKeys, 0);
        pieces += w.seq == 0;
    }
    EXPECT_GT(pieces, 8);
}

TEST(Planner, WindowsSkipBlocks) {
    Batch batch;
    batch.add(1, 128 * 1024);
    PlanConfig c = config_for(batch, kHopper, 8, 1, 128, 1);
    c.window_left = 127;
    Plan plan(c, batch.lengths());
    ASSERT_EQ(plan.header().num_items, 1);
    const WorkItem& item = plan.items()[0];
    EXPECT_EQ(item.block_begin * c.block_n, 128 * 1024 - 128);
    EXPECT_EQ(item.block_end * c.block_n, 128 * 1024);
}

TEST(Planner, PlansAreReproducible) {
    Batch batch;
    for (int i = 0; i < 100; ++i)
        batch.add(i % 7, i * 37);
    const PlanConfig c = config_for(batch, kHopper, 8, 2, 64);
    Plan a(c, batch.lengths()), b(c, batch.lengths());
    EXPECT_EQ(std::memcmp(&a.header(), &b.header(), sizeof(PlanHeader)), 0);
    EXPECT_EQ(std::memcmp(a.items(), b.items(), a.header().num_items * sizeof(WorkItem)), 0);
}

TEST(Planner, DivisorsDivide) {
    Random random(test::first_seed());
    for (int i = 0; i < 10000; ++i) {
        const uint32_t by = random.chance(0.5) ? random.integer(1, 300) : random.integer(1, INT32_MAX);
        const uint32_t near = by * static_cast<uint32_t>(random.integer(0, INT32_MAX / by));
        for (const uint32_t x :
             {near, near - (near > 0), uint32_t{INT32_MAX}, static_cast<uint32_t>(random.integer(0, INT32_MAX))}) {
            ASSERT_EQ(divide(x, divisor(by)), x / by) << x << " / " << by;
            ASSERT_EQ(ceil_divide(x, divisor(by)), (uint64_t{x} + by - 1) / by) << x << " / " << by;
        }
    }
}

TEST(Planner, EmptyBatches) {
    Batch none, all_empty;
    for (int i = 0; i < 5; ++i)
        all_empty.add(0, 100);
    for (const Batch& batch : {none, all_empty}) {
        const PlanConfig c = config_for(batch, kHopper, 8, 2, 64);
        EXPECT_EQ(fault_of(c, batch.lengths()), "");
        EXPECT_EQ(Plan(c, batch.lengths()).header().num_items, 0);
    }
}

TEST(Planner, RefusesNullPointersAndForeignDevices) {
    Batch batch;
    batch.add(1, 1);
    const PlanConfig c = config_for(batch, cpu_device(), 1, 1, 64);
    Plan plan(c, batch.lengths());
    SequenceLengths lengths = batch.lengths();
    const auto kInvalid = ErrorCode::kInvalidArgument;
    test::expect_error(kInvalid, "plan: plan: got null", [&] { make_plan_cpu(c, lengths, nullptr); });
    test::expect_error(kInvalid, "plan: plan: got a pointer that is not aligned",
                       [&] { make_plan_cpu(c, lengths, static_cast<char*>(plan.data()) + 4); });
    test::expect_error(kInvalid, "plan: cu_seqlens_q: got null",
                       [&] { make_plan_cpu(c, {nullptr, lengths.seqused_k, nullptr}, plan.data()); });
    test::expect_error(kInvalid, "plan: seqused_k: got null",
                       [&] { make_plan_cpu(c, {lengths.cu_seqlens_q, nullptr, nullptr}, plan.data()); });
    test::expect_error(kInvalid, "plan: config: got one made for the kernel portable_d64",
                       [&] { make_plan_cpu(config_for(batch, kAmpere, 1, 1, 64), lengths, plan.data()); });
}

}  // namespace
}  // namespace varattn
