# make and gcc: objects, an archive, a library that is loaded at run time, and only what changed is made again.
cat >Makefile <<'END'
CFLAGS = -O1 -g -Wall
all: program libplugin.so
program: main.o libpart.a
	$(CC) $(CFLAGS) -o $@ main.o -L. -lpart -ldl
libpart.a: part.o
	$(AR) rcs $@ $^
libplugin.so: plugin.c
	$(CC) $(CFLAGS) -shared -fPIC -o $@ $<
check: all
	./program | tee said.txt
clean:
	rm -f *.o *.a
END
echo 'int part(void) { return 40; }' >part.c
echo 'int plugin(void) { return 2; }' >plugin.c
cat >main.c <<'END'
#include <dlfcn.h>
#include <stdio.h>
int part(void);
int main(void) {
    void *handle = dlopen("./libplugin.so", RTLD_NOW);
    if (!handle) return puts(dlerror()), 1;
    int (*plugin)(void) = (int (*)(void))dlsym(handle, "plugin");
    return printf("compiled %d\n", part() + plugin()) < 0;
}
END
make -j2
make check
touch part.c
make -j2 | tee again.txt
strip -o stripped program
./stripped >>said.txt
make clean
