import { version as declared } from '../package.json'

/** Of this package. */
export const version: string = declared
