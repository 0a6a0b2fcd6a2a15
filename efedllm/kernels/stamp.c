/* Which sources a library was built from (stamp.py); unknown in a build by hand. */
#ifndef EFL_STAMP
#define EFL_STAMP ""
#endif

const char *efl_stamp(void);

const char *efl_stamp(void) { return EFL_STAMP; }
