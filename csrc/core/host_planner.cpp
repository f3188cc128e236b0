#include "core/host_planner.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace varattn {
namespace {

struct PlannedTile {
    int32_t seq, index;
    Tile tile;
    bool decode;
    int32_t cost;
    int32_t num_splits = 1;
    int32_t split_tile = 0, partial_row = 0;
};

int64_t choose_target(const PlanConfig& c, const Totals& totals, const std::vector<PlannedTile>& tiles) {
    const int64_t fair = fair_share(c, totals);
    if (!fits_one_wave(c, totals.tiles)) return fair;
    int64_t target = 0;
    for (int candidate = 0; candidate < kNumTargets; ++candidate) {
        target = target_cost(fair, candidate);
        int64_t pieces = 0;
        for (const PlannedTile& t : tiles) pieces += splits_of(c, t.cost, t.tile.blocks.end - t.tile.blocks.begin, target);
        if (fits_one_wave(c, pieces)) break;
    }
    return target;
}

}  // namespace

uint32_t read_lengths(const PlanConfig& c, const SequenceLengths& in, std::vector<SequenceShape>& seqs) {
    uint32_t status = 0;
    int32_t q = 0, k = 0;
    auto advance = [&](int32_t& offset, int32_t given, int32_t limit, uint32_t bit) {
        int32_t next = std::max(offset, clamp_offset(given, limit));
        if (next != given) status |= bit;
        offset = next;
    };
    if (c.max_seqs > 0) {
        advance(q, in.cu_seqlens_q[0], c.max_total_q, kStatusCuSeqlensQ);
        if (in.cu_seqlens_k) advance(k, in.cu_seqlens_k[0], 0x7fffffff, kStatusCuSeqlensK);
    }
    seqs.resize(c.max_seqs);
    for (int32_t i = 0; i < c.max_seqs; ++i) {
        SequenceShape& s = seqs[i];
        s.q_begin = q;
        s.k_begin = k;
        advance(q, in.cu_seqlens_q[i + 1], c.max_total_q, kStatusCuSeqlensQ);
        s.q_len = q - s.q_begin;
        int32_t longest = kMaxLength;
        if (in.cu_seqlens_k) {
            advance(k, in.cu_seqlens_k[i + 1], 0x7fffffff, kStatusCuSeqlensK);
            const int32_t range = k - s.k_begin;
            longest = std::min(longest, range);
            if (longest < range && !in.seqused_k) status |= kStatusCuSeqlensK;
        }
        s.kv_len = longest;
        if (in.seqused_k) {
            s.kv_len = clamp(in.seqused_k[i], 0, longest);
            if (s.kv_len != in.seqused_k[i]) status |= kStatusSequsedK;
        }
    }
    return status;
}

void plan_on_host(const PlanConfig& c, const CostModel& costs, const SequenceLengths& lengths, void* plan) {
    std::vector<SequenceShape> seqs;
    PlanHeader header{};
    header.magic = kPlanMagic;
    header.config = c;
    header.status = read_lengths(c, lengths, seqs);
    if (c.max_seqs > 0) {
        header.q_begin = seqs.front().q_begin;
        header.q_end = seqs.back().q_begin + seqs.back().q_len;
    }

    std::vector<PlannedTile> tiles;
    Totals totals{};
    int64_t kind_cost[2] = {};
    for (int32_t i = 0; i < c.max_seqs; ++i) {
        bool decode = is_decode(c, seqs[i].q_len);
        for (int32_t t = 0; t < num_tiles(c, seqs[i].q_len); ++t) {
            Tile tile = tile_at(c, seqs[i].q_len, seqs[i].kv_len, t);
            int32_t cost = item_cost(costs, decode, tile.blocks.end - tile.blocks.begin);
            tiles.push_back({i, t, tile, decode, cost});
            totals.cost += cost;
            kind_cost[decode] += cost;
        }
    }
    totals.tiles = static_cast<int32_t>(tiles.size());

    int64_t target = choose_target(c, totals, tiles);
    int32_t pieces = 0;
    for (PlannedTile& t : tiles) {
        int32_t splits = splits_of(c, t.cost, t.tile.blocks.end - t.tile.blocks.begin, target);
        if (splits < 2) continue;
        if (pieces + splits <= max_pieces(c)) {
            t.num_splits = splits;
            t.split_tile = header.num_split_tiles++;
            t.partial_row = header.num_partial_rows;
            header.num_partial_rows += splits * (t.tile.rows.end - t.tile.rows.begin);
        }
        pieces += splits;  // counted even where there was no room left: a prefix sum, which the device can take
    }

    std::vector<const PlannedTile*> order;
    for (const PlannedTile& t : tiles) order.push_back(&t);
    auto key = [&](const PlannedTile* t) {
        return order_key(costs, t->decode, t->tile.blocks.end - t->tile.blocks.begin, t->num_splits);
    };
    std::stable_sort(order.begin(), order.end(), [&](auto* a, auto* b) { return key(a) < key(b); });

    auto* items = reinterpret_cast<WorkItem*>(static_cast<char*>(plan) + plan_layout(c).items);
    for (const PlannedTile* t : order) {
        for (int32_t s = 0; s < t->num_splits; ++s)
            items[header.num_items++] = make_item(c, costs, t->seq, seqs[t->seq], t->index, t->tile, s, t->num_splits,
                                                  t->split_tile, t->partial_row);
        if (!t->decode) header.num_front_items = header.num_items;
    }
    header.num_front_ctas = front_ctas(c, kind_cost[0], kind_cost[1]);
    std::memcpy(plan, &header, sizeof header);
}

}  // namespace varattn
