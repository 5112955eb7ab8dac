// What the programs of this folder share: how they end.

import { CallError } from "./latentserve.mjs";

/** A wrong command line. */
export class UsageError extends Error {}

/** Runs a program; sets the exit status to 1 if a call or a file failed, 2 for a UsageError. */
export async function runProgram(main, usage) {
  try {
    await main();
  } catch (error) {
    if (error instanceof UsageError) {
      console.error(`${error.message}\n${usage}`);
      process.exitCode = 2;
    } else if (error instanceof CallError || error.syscall) {
      console.error(error.message);
      process.exitCode = 1;
    } else {
      throw error; // a bug of this program
    }
  }
}
