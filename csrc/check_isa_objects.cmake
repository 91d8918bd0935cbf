# Fails the build when an object compiled for one instruction set could leak its code to other CPUs.
#
#   cmake -DNM=<nm> -P check_isa_objects.cmake object...
#
# A weak symbol is an inline function or template that other files have too: the linker keeps one copy for all, and it
# may keep the AVX-512 one for the path that runs on every CPU. A static initialiser runs when the module is loaded, on
# every CPU. Cure: an anonymous namespace or `static`; nothing from <vector>, <algorithm> and their like; constant data.
if(NOT NM OR NOT EXISTS "${NM}")
  message("qkernels: nm not found: the objects of the ISA files are not checked for weak symbols")
  return()
endif()

set(objects)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(CMAKE_ARGV${i} MATCHES "\\.(o|obj)$")
    list(APPEND objects "${CMAKE_ARGV${i}}")
  endif()
endforeach()
if(NOT objects)
  message(FATAL_ERROR "check_isa_objects: no object was given")
endif()

set(found "")
foreach(object IN LISTS objects)
  execute_process(COMMAND "${NM}" -C "${object}" OUTPUT_VARIABLE listing RESULT_VARIABLE status ERROR_VARIABLE error)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "check_isa_objects: ${NM} ${object}: ${error}")
  endif()
  # W V w v weak, u unique; an initialiser has a local symbol of a known name. ';' would split CMake's list.
  string(REPLACE ";" "," listing "${listing}")
  string(REPLACE "\n" ";" lines "${listing}")
  get_filename_component(name "${object}" NAME)
  foreach(line IN LISTS lines)
    if(line MATCHES "^[0-9a-fA-F ]* [WVwvu] |_GLOBAL__sub_I_|__static_initialization_and_destruction")
      string(REGEX REPLACE "^[0-9a-fA-F ]* ([A-Za-z]) " "\\1 " line "${line}")
      string(APPEND found "\n  ${name}: ${line}")
    endif()
  endforeach()
endforeach()
if(found)
  message(FATAL_ERROR "Weak symbols or static initialisers in objects of an ISA (csrc/check_isa_objects.cmake says why):${found}")
endif()
