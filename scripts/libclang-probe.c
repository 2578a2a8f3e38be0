/* Loads a libclang as bindgen does and lets it parse what bindgen will; scripts/setup compiles and runs it.
 *
 * usage: libclang-probe LIBRARY [CLANG_ARGUMENT...]
 *
 * Prints the library's version. Exit code: 0 it will do; 3 it is no libclang; 4 it is too old; 5 it does not find the
 * compiler's own headers. What is wrong is told on stderr.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* From clang-c/CXString.h and Index.h, which are in no package that we need; they have not changed since 3.0. */
typedef struct { const void *data; unsigned flags; } String;
struct UnsavedFile { const char *name; const char *contents; unsigned long length; };
enum { OLDEST = 9, SEVERITY_ERROR = 3 };

static void *library;

/* dlsym gives a void pointer, which ISO C lets nobody cast to a function's. */
static void find(const char *name, void *function) {
  void *found = dlsym(library, name);
  if (found == NULL) {
    fprintf(stderr, "it has no %s\n", name);
    exit(3);
  }
  memcpy(function, &found, sizeof found);
}

int main(int count, char **arguments) {
  String (*version_of)(void), (*words_of)(void *);
  const char *(*text)(String);
  void *(*create_index)(int, int);
  void *(*parse)(void *, const char *, const char *const *, int, struct UnsavedFile *, unsigned, unsigned);
  unsigned (*diagnostics)(void *), index, wrong = 0;
  void *(*diagnostic)(void *, unsigned), *unit;
  int (*severity)(void *);
  const char *version, *digits;
  struct UnsavedFile file = {"probe.h",
    "#include <stdarg.h>\n#include <stdbool.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <stdlib.h>\n"
    "size_t probe(int64_t number, bool yes);\n", 0};

  if (count < 2) return 2;
  library = dlopen(arguments[1], RTLD_LAZY);
  if (library == NULL) {
    fprintf(stderr, "it cannot be loaded: %s\n", dlerror());
    return 3;
  }
  find("clang_createIndex", &create_index);
  find("clang_getClangVersion", &version_of);
  find("clang_getCString", &text);
  version = text(version_of());
  digits = strstr(version, "version ");
  digits = digits ? digits + strlen("version ") : "0";
  if (atoi(digits) < OLDEST) {
    fprintf(stderr, "it is too old: %s, and bindgen needs %d or newer\n", version, OLDEST);
    return 4;
  }
  find("clang_parseTranslationUnit", &parse);
  find("clang_getNumDiagnostics", &diagnostics);
  find("clang_getDiagnostic", &diagnostic);
  find("clang_getDiagnosticSeverity", &severity);
  find("clang_getDiagnosticSpelling", &words_of);
  printf("%.*s\n", (int)strspn(digits, "0123456789."), digits);
  fflush(stdout);
  file.length = strlen(file.contents);
  unit = parse(create_index(0, 0), file.name, (const char *const *)arguments + 2, count - 2, &file, 1, 0);
  if (unit == NULL) {
    fprintf(stderr, "it cannot parse a header\n");
    return 5;
  }
  for (index = 0; index < diagnostics(unit); index++) {
    void *one = diagnostic(unit, index);
    if (severity(one) >= SEVERITY_ERROR && wrong++ == 0) fprintf(stderr, "%s\n", text(words_of(one)));
  }
  return wrong == 0 ? 0 : 5;
}
