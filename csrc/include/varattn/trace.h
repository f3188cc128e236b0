// The optional trace of an attention call: what ran where, and when.
//
// A trace buffer is a TraceHeader, zeroed by its owner, then room for `trace_capacity` records (AttentionParams). Records
// come in any order. The buffer is bounded: those past its end are counted and dropped.
#pragma once

#include <cstddef>
#include <cstdint>

namespace varattn {

struct TraceHeader {
    uint64_t count;  // records offered, dropped ones too; a record's slot is the atomic count before it
    uint64_t reserved[3];
};

enum TraceKind : uint32_t {
    kTraceTask = 0,   // all of a task: from its first load, or its pop, to its last write
    kTraceLoad = 1,   // its loads of Q, K and V, where a role of its own does them
    kTraceMerge = 2,  // the merge of the splits of its tile; part of kTraceTask
};

struct TraceRecord {
    uint64_t task;      // index of the work item << 32 | KV head
    uint64_t place;     // SM (CPU: thread) << 32 | TraceKind
    uint64_t begin_ns;  // of a clock that all SMs share
    uint64_t end_ns;
};
static_assert(sizeof(TraceHeader) == 32 && sizeof(TraceRecord) == 32);

constexpr uint64_t trace_pair(uint32_t high, uint32_t low) { return uint64_t{high} << 32 | low; }

}  // namespace varattn
