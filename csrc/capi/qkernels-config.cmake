# find_package(qkernels CONFIG): the target qkernels::qkernels. CMAKE_PREFIX_PATH is `python -m qkernels --cmakedir`.
get_filename_component(_qkernels_root "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT EXISTS "${_qkernels_root}/lib/libqkernels.so")
  set(qkernels_FOUND FALSE)
  set(qkernels_NOT_FOUND_MESSAGE "no libqkernels.so in ${_qkernels_root}/lib: this qkernels was built without a compiler")
  return()
endif()
if(NOT TARGET qkernels::qkernels)
  add_library(qkernels::qkernels SHARED IMPORTED)
  set_target_properties(qkernels::qkernels PROPERTIES
    IMPORTED_LOCATION "${_qkernels_root}/lib/libqkernels.so"
    IMPORTED_SONAME libqkernels.so
    INTERFACE_INCLUDE_DIRECTORIES "${_qkernels_root}/include")
endif()
unset(_qkernels_root)
