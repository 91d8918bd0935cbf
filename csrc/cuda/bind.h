// What the binding files share: plain structs with pointers and numbers, as Python sees them.
#pragma once
#include <pybind11/pybind11.h>

#include "calls.h"

namespace py = pybind11;

namespace qk::cuda {

inline void require(bool good, const char* what) {
  if (!good) throw py::value_error(what);
}

template <class T>
struct Is;  // the class and type of a pointer to a member
template <class C, class M>
struct Is<M C::*> {
  using Class = C;
  using Member = M;
};

template <auto kMember, class Bound>
void pointer(Bound& bound, const char* name) {
  using Class = typename Is<decltype(kMember)>::Class;
  using Member = typename Is<decltype(kMember)>::Member;
  bound.def_property(
      name, [](const Class& self) { return reinterpret_cast<uintptr_t>(self.*kMember); },
      [](Class& self, uintptr_t value) { self.*kMember = reinterpret_cast<Member>(value); });
}

template <auto kMember, class Bound>
void number(Bound& bound, const char* name) {
  using Class = typename Is<decltype(kMember)>::Class;
  using Member = typename Is<decltype(kMember)>::Member;
  if constexpr (std::is_enum_v<Member>)
    bound.def_property(
        name, [](const Class& self) { return int(self.*kMember); },
        [](Class& self, int value) {
          require(value >= kS32 && value <= kU16, "no such type");
          self.*kMember = Member(value);
        });
  else bound.def_readwrite(name, kMember);
}

#define QK_POINTER(type, name) pointer<&type::name>(bound, #name)
#define QK_NUMBER(type, name) number<&type::name>(bound, #name)

void bind_weights(py::module_& m);  // bind_weights.cpp
void bind_conv(py::module_& m);     // bind_conv.cpp

}  // namespace qk::cuda
