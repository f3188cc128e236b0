// find_plan_fault finds faults: each test breaks a good plan in one way.
#include <algorithm>
#include <functional>

#include "support.h"

namespace varattn {
namespace {

using test::Plan;

class PlanCheck : public testing::Test {
protected:
    // Two prefills of several tiles, decodes of which two are split: every kind of item.
    PlanCheck() {
        PlanOptions o;
        o.num_heads_q = 4;
        o.num_heads_kv = 2;
        o.head_dim = 64;
        o.causal = true;
        o.max_seqs = static_cast<int32_t>(kv.size());
        o.max_total_q = q.back();
        config = make_plan_config({DeviceType::kCuda, 80, 64}, o);
        config.tile_rows = 128;
        config.tile_rows_decode = 16;
        config.block_n = 64;
    }

    std::string fault_after(const std::function<void(PlanHeader&, WorkItem*)>& change) {
        Plan plan(config, lengths());
        change(plan.header(), plan.items());
        return find_plan_fault(config, plan.costs(), lengths(), plan.data());
    }
    SequenceLengths lengths() const { return {q.data(), kv.data(), nullptr}; }

    // Index of the first item for which `is` holds.
    static int find(const PlanHeader& h, const WorkItem* items, const std::function<bool(const WorkItem&)>& is) {
        const int i = static_cast<int>(std::find_if(items, items + h.num_items, is) - items);
        EXPECT_LT(i, h.num_items);
        return i;
    }

    std::vector<int32_t> q{0, 200, 201, 201, 203, 500, 501}, kv{900, 60000, 77, 70000, 300, 0};
    PlanConfig config;
};

TEST_F(PlanCheck, TheGoodPlanHasEveryKindOfItem) {
    EXPECT_EQ(fault_after([&](PlanHeader& h, WorkItem* items) {
                  EXPECT_GE(h.num_split_tiles, 2);
                  EXPECT_GT(h.num_front_items, 5);
                  find(h, items, [](const WorkItem& w) { return w.num_splits > 2 && w.split > 0; });
                  find(h, items, [](const WorkItem& w) { return w.block_begin == w.block_end; });
              }),
              "");
}

TEST_F(PlanCheck, FindsBrokenHeaders) {
    const std::function<void(PlanHeader&)> changes[] = {
        [](PlanHeader& h) { h.magic ^= 1; },
        [](PlanHeader& h) { h.config.num_splits -= 1; },
        [](PlanHeader& h) { h.status |= kStatusSequsedK; },
        [](PlanHeader& h) { h.q_begin += 1; },
        [](PlanHeader& h) { h.q_end -= 1; },
        [](PlanHeader& h) { h.num_items -= 1; },
        [](PlanHeader& h) { h.num_items = -1; },
        [](PlanHeader& h) { h.num_items = 0x7fffffff; },
        [](PlanHeader& h) { h.num_front_items += 1; },
        [](PlanHeader& h) { h.num_front_items -= 1; },
        [](PlanHeader& h) { h.num_front_ctas = h.config.num_ctas; },
        [](PlanHeader& h) { h.num_front_ctas = 0; },
        [](PlanHeader& h) { h.section_heads = 0; },
        [](PlanHeader& h) { h.section_heads = h.config.num_heads_kv + 1; },
        [](PlanHeader& h) { h.num_split_tiles -= 1; },
        [](PlanHeader& h) { h.num_split_tiles += 1; },
        [](PlanHeader& h) { h.num_partial_rows -= 1; },
        [](PlanHeader& h) { h.num_partial_rows = 1 << 30; },
    };
    for (size_t i = 0; i < std::size(changes); ++i)
        EXPECT_NE(fault_after([&](PlanHeader& h, WorkItem*) { changes[i](h); }), "") << "change " << i;
}

TEST_F(PlanCheck, FindsAnyChangedFieldOfAnyItem) {
    Plan good(config, lengths());
    const int num_items = good.header().num_items, words = sizeof(WorkItem) / 4;
    for (int i = 0; i < num_items; ++i)
        for (int word = 0; word < words; ++word)
            for (int32_t by : {-1, 1, 1000}) {
                // Where partials lie is free as long as they are disjoint and inside; direct items have none.
                if (word == offsetof(WorkItem, partial_row) / 4) continue;
                const std::string fault = fault_after(
                    [&](PlanHeader&, WorkItem* items) { reinterpret_cast<int32_t*>(&items[i])[word] += by; });
                EXPECT_NE(fault, "") << "item " << i << ", word " << word << ", by " << by;
            }
}

TEST_F(PlanCheck, FindsOverlappingPartials) {
    EXPECT_NE(fault_after([&](PlanHeader& h, WorkItem* items) {
                  for (int i = 0; i < h.num_items; ++i)
                      if (items[i].num_splits > 1) items[i].partial_row = 0;
              }),
              "");
    EXPECT_NE(fault_after([&](PlanHeader& h, WorkItem* items) {
                  for (int i = 0; i < h.num_items; ++i)
                      if (items[i].num_splits > 1) items[i].split_tile = 0;
              }),
              "");
    EXPECT_NE(fault_after([&](PlanHeader& h, WorkItem* items) {
                  const int i = find(h, items, [](const WorkItem& w) { return w.num_splits > 1 && w.split == 1; });
                  items[i].partial_row += 1;
              }),
              "");
}

TEST_F(PlanCheck, FindsMissingDoubledAndSwappedItems) {
    EXPECT_NE(fault_after([](PlanHeader&, WorkItem* items) { items[1] = items[0]; }), "");
    EXPECT_NE(fault_after([](PlanHeader& h, WorkItem* items) { std::swap(items[0], items[h.num_front_items - 1]); }),
              "");
    EXPECT_NE(fault_after([](PlanHeader& h, WorkItem* items) { std::swap(items[0], items[h.num_items - 1]); }), "");
    EXPECT_NE(fault_after([&](PlanHeader& h, WorkItem* items) {
                  const int i = find(h, items, [](const WorkItem& w) { return w.num_splits > 1; });
                  std::swap(items[i], items[i + 1]);
              }),
              "");
}

TEST_F(PlanCheck, FindsUnbalancedSplits) {
    EXPECT_NE(fault_after([&](PlanHeader& h, WorkItem* items) {
                  const int i = find(h, items, [](const WorkItem& w) { return w.num_splits > 1; });
                  const int32_t moved = 5;
                  items[i].block_end -= moved;
                  items[i + 1].block_begin -= moved;
                  for (WorkItem* w : {&items[i], &items[i + 1]})
                      w->cost = item_cost(cost_model(static_cast<KernelId>(config.kernel)), w->flags & kItemDecode,
                                          w->block_end - w->block_begin);
              }),
              "");
}

}  // namespace
}  // namespace varattn
