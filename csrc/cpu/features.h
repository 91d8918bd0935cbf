// What this CPU and its operating system offer, by CPUID, XCR0 and the AMX permission call; never by model name.
#pragma once

namespace qk {

struct Feature {
  const char* name;
  bool present;
};

struct Features {
  const Feature* list;
  int count;
};

Features cpu_features();         // every feature that a kernel asks for, found or not
bool cpu_runs(const char* isa);  // may a kernel of this ISA run here?
long cache_bytes(int level);     // data cache of one core, 1 or 2; a usual size when the system does not say

}  // namespace qk
