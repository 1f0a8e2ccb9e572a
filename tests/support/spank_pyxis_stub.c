/*
 * Stands in for the pyxis plugin: srun, sbatch and salloc accept its options, tasks run on the host.
 * Each task that got an option appends one line to the file named in plugstack.conf, fields separated by tabs:
 * job, step, task, host name, then option=value for every option (an option without argument: option=).
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <slurm/spank.h>

SPANK_PLUGIN(pyxis_stub, 1)

static const struct {
    const char *name;
    int has_value;
} known[] = {
    {"container-image", 1},
    {"container-mounts", 1},
    {"container-workdir", 1},
    {"container-name", 1},
    {"container-save", 1},
    {"container-env", 1},
    {"container-mount-home", 0},
    {"no-container-mount-home", 0},
    {"container-remap-root", 0},
    {"no-container-remap-root", 0},
    {"container-entrypoint", 0},
    {"no-container-entrypoint", 0},
    {"container-entrypoint-log", 0},
    {"container-writable", 0},
    {"container-readonly", 0},
};
#define KNOWN ((int)(sizeof known / sizeof known[0]))

static char given[8192];

static int remember(int which, const char *value, int remote)
{
    size_t used = strlen(given);

    (void)remote;
    snprintf(given + used, sizeof given - used, "\t%s=%s", known[which].name, value ? value : "");
    return 0;
}

int slurm_spank_init(spank_t spank, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    for (int which = 0; which < KNOWN; which++) {
        struct spank_option option = {
            .name = (char *)known[which].name,
            .arginfo = known[which].has_value ? "VALUE" : NULL,
            .usage = "[pyxis stand-in] recorded only",
            .has_arg = known[which].has_value,
            .val = which,
            .cb = remember,
        };
        if (spank_option_register(spank, &option) != ESPANK_SUCCESS)
            return -1;
    }
    return 0;
}

int slurm_spank_task_init(spank_t spank, int argc, char **argv)
{
    char line[sizeof given + 512], host[256] = "";
    uint32_t job = 0, step = 0, task = 0;
    int file, length;

    if (!given[0] || argc < 1)
        return 0;
    spank_get_item(spank, S_JOB_ID, &job);
    spank_get_item(spank, S_JOB_STEPID, &step);
    spank_get_item(spank, S_TASK_GLOBAL_ID, &task);
    gethostname(host, sizeof host - 1);
    length = snprintf(line, sizeof line, "%u\t%u\t%u\t%s%s\n", job, step, task, host, given);
    file = open(argv[0], O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (file < 0 || write(file, line, length) != length) {
        slurm_error("pyxis stand-in: %s cannot be written", argv[0]);
        return -1;
    }
    close(file);
    return 0;
}
